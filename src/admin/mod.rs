//! The operators' front end: `/metrics` for Prometheus, `/livez /readyz /startupz` for Kubernetes,
//! `/stats` for people, `/api/v1` for tools.
//!
//! Serves whatever the process says of itself through [`Process`]; opens no socket. A probe's
//! answer has a one-line body with the reason, for people who ask by hand. What the API offers
//! stands in `openapi.json`, which it serves itself; who may use it is `access`'s matter.

mod access;
mod api;
mod body;
mod json;
mod lists;
pub mod live;
mod passkeys;
mod problem;
mod registrations;

pub use access::Token;

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};
use axum::{Router, middleware};
use tokio::sync::Semaphore;

use crate::access_store::{AccessError, AccessManager};
use crate::frontend::stats::{Pages, Stats};
use crate::time::Now;
use crate::tracker::Listing;
use live::{StatsHub, Top};
use problem::ApiError;

/// What the process says of itself.
pub trait Process: Send + Sync + 'static {
    /// All metrics in Prometheus' text format, as of now.
    fn metrics(&self) -> String;

    /// Whether every worker's loop goes round. A restart is the answer where it does not.
    ///
    /// # Errors
    /// What is stuck.
    fn live(&self) -> Result<(), String>;

    /// Whether requests should be sent here.
    ///
    /// # Errors
    /// Why not.
    fn ready(&self) -> Result<(), String>;

    /// Whether the start is over.
    ///
    /// # Errors
    /// What is still missing.
    fn started(&self) -> Result<(), String>;

    /// The figures of the statistics pages, as of now.
    fn stats(&self) -> Stats;

    /// Where the statistics page has its figures from.
    fn board(&self) -> Arc<StatsHub>;

    /// A handle for lists of torrents.
    fn listing(&self) -> Listing;

    /// What keeps lists, registrations and passkeys.
    fn access_manager(&self) -> Arc<AccessManager>;

    /// The time, for the ages of peers.
    fn now(&self) -> Now;

    /// What `Authorization: Bearer …` has to say under `/api/v1`.
    fn token(&self) -> Token;

    /// Writes down what is kept in memory and would be written down later, swarms included; waits
    /// for the disk.
    ///
    /// # Errors
    /// [`AccessError`] where it cannot; nothing is lost by that.
    fn save(&self) -> Result<(), AccessError>;

    /// Begins the orderly stop, as SIGTERM does; returns at once.
    fn shut_down(&self);
}

/// The pages and the API. To be served with the connecting address, as an extension
/// `ConnectInfo<SocketAddr>` of each request.
pub fn router<P: Process>(process: Arc<P>) -> Router {
    let admin = Admin { process, walk: Arc::new(Semaphore::new(1)), top: Top::default() };
    let open = routed(pages());
    let guard = middleware::from_fn_with_state(admin.clone(), access::guard::<P>);
    let guarded = routed(api::routes()).layer(guard);
    open.merge(guarded).fallback(async || ApiError::no_such_page()).with_state(admin)
}

/// What every request works with.
struct Admin<P> {
    process: Arc<P>,
    /// Held by the one walk over the store that may be under way.
    walk: Arc<Semaphore>,
    /// The largest torrents, for the statistics page.
    top: Top,
}

impl<P> Clone for Admin<P> {
    fn clone(&self) -> Self {
        Self { process: self.process.clone(), walk: self.walk.clone(), top: self.top.clone() }
    }
}

/// Paths and what serves them.
type Routes<P> = Vec<(&'static str, MethodRouter<Admin<P>>)>;

fn routed<P: Process>(routes: Routes<P>) -> Router<Admin<P>> {
    let add = |router: Router<Admin<P>>, (path, service)| router.route(path, service);
    let router = routes.into_iter().fold(Router::new(), add);
    router.method_not_allowed_fallback(async || ApiError::bad_method())
}

/// What everyone who can reach the listener may see.
fn pages<P: Process>() -> Routes<P> {
    let live = async |State(it): State<Admin<P>>| verdict(it.process.live());
    let ready = async |State(it): State<Admin<P>>| verdict(it.process.ready());
    let started = async |State(it): State<Admin<P>>| verdict(it.process.started());
    vec![
        ("/metrics", get(metrics::<P>)),
        ("/livez", get(live)),
        ("/readyz", get(ready)),
        ("/startupz", get(started)),
        ("/stats", get(live::page::<P>)),
        ("/stats/live", get(live::socket::<P>)),
        ("/stats.json", get(stats_json::<P>)),
    ]
}

async fn metrics<P: Process>(State(admin): State<Admin<P>>) -> impl IntoResponse {
    let text = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    ([text], admin.process.metrics())
}

async fn stats_json<P: Process>(State(admin): State<Admin<P>>) -> impl IntoResponse {
    (JSON, Pages::of(&admin.process.stats()).json)
}

/// Figures of this moment are worth nothing in a cache.
const NOT_KEPT: (HeaderName, &str) = (header::CACHE_CONTROL, "no-store");

/// The head of a JSON page.
const JSON: [(HeaderName, &str); 3] = [
    (header::CONTENT_TYPE, "application/json"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    NOT_KEPT,
];

fn verdict(result: Result<(), String>) -> (StatusCode, String) {
    match result {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A process that is never there: routes are the same for all.
    enum Nobody {}

    impl Process for Nobody {
        fn metrics(&self) -> String {
            match *self {}
        }

        fn live(&self) -> Result<(), String> {
            match *self {}
        }

        fn ready(&self) -> Result<(), String> {
            match *self {}
        }

        fn started(&self) -> Result<(), String> {
            match *self {}
        }

        fn stats(&self) -> Stats {
            match *self {}
        }

        fn board(&self) -> Arc<StatsHub> {
            match *self {}
        }

        fn listing(&self) -> Listing {
            match *self {}
        }

        fn access_manager(&self) -> Arc<AccessManager> {
            match *self {}
        }

        fn now(&self) -> Now {
            match *self {}
        }

        fn token(&self) -> Token {
            match *self {}
        }

        fn save(&self) -> Result<(), AccessError> {
            match *self {}
        }

        fn shut_down(&self) {
            match *self {}
        }
    }

    #[test]
    fn every_route_is_described_and_no_other() {
        let described: serde_json::Value =
            serde_json::from_str(include_str!("openapi.json")).unwrap();
        let described = described["paths"].as_object().unwrap();
        let routes = pages::<Nobody>().into_iter().chain(api::routes::<Nobody>());
        let routes: BTreeSet<_> = routes.map(|(path, _)| path).collect();
        assert_eq!(routes, described.keys().map(String::as_str).collect());
    }
}
