//! The operators' front end: `/metrics` for Prometheus, `/livez /readyz /startupz` for Kubernetes,
//! `/stats` for people, `/badge.svg` for their pages, `/api/v1` for tools.
//!
//! Serves the state of the process, which it reads through [`Process`]; opens no socket. The
//! response to a probe has a one-line body with the reason, for manual checks. `openapi.json`
//! describes the API, which also serves that file; `access` decides which requests the API serves.

mod access;
mod api;
mod body;
mod json;
mod lists;
pub mod live;
mod passkeys;
mod problem;
mod registrations;
mod runbook;

pub use access::Token;

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};
use axum::{Router, middleware};
use tokio::sync::Semaphore;

use crate::access_store::{AccessError, AccessManager};
use crate::frontend::drawing::{self, BADGE_AGE_S_MAX};
use crate::frontend::stats::{self, BADGE_POLICY, Stats};
use crate::time::Now;
use crate::tracker::Listing;
use live::{StatsHub, Top};
use problem::ApiError;

/// The process, as this front end uses it.
pub trait Process: Send + Sync + 'static {
    /// All metrics in Prometheus' text format, as of now.
    fn metrics(&self) -> String;

    /// Whether every worker's loop is running. If not, a restart is the remedy.
    ///
    /// # Errors
    /// What is stuck.
    fn live(&self) -> Result<(), String>;

    /// Whether the process is ready for requests.
    ///
    /// # Errors
    /// Why not.
    fn ready(&self) -> Result<(), String>;

    /// Whether the start is complete.
    ///
    /// # Errors
    /// What is still missing.
    fn started(&self) -> Result<(), String>;

    /// The figures of the statistics pages, as of now.
    fn stats(&self) -> Stats;

    /// The source of the statistics page's figures.
    fn board(&self) -> Arc<StatsHub>;

    /// A handle for lists of torrents.
    fn listing(&self) -> Listing;

    /// The manager of lists, registrations and passkeys.
    fn access_manager(&self) -> Arc<AccessManager>;

    /// The current time, for the ages of peers.
    fn now(&self) -> Now;

    /// The token that `Authorization: Bearer …` must hold under `/api/v1`.
    fn token(&self) -> Token;

    /// Saves now what is kept in memory and would be saved later, swarms included; waits for the
    /// disk.
    ///
    /// # Errors
    /// [`AccessError`] if that fails; nothing in memory is lost then.
    fn save(&self) -> Result<(), AccessError>;

    /// Starts the orderly stop, as SIGTERM does; returns at once.
    fn shut_down(&self);
}

/// The router of the pages and the API. Each request needs the client's address, as an extension
/// `ConnectInfo<SocketAddr>`.
pub fn router<P: Process>(process: Arc<P>) -> Router {
    let admin = Admin { process, walk: Arc::new(Semaphore::new(1)), top: Top::default() };
    let open = routed(pages());
    let guard = middleware::from_fn_with_state(admin.clone(), access::guard::<P>);
    let guarded = routed(api::routes()).layer(guard);
    open.merge(guarded).fallback(async || ApiError::no_such_page()).with_state(admin)
}

/// The state that all requests share.
struct Admin<P> {
    process: Arc<P>,
    /// The permit of a walk over the store: only one walk runs at a time.
    walk: Arc<Semaphore>,
    /// The largest torrents, for the statistics page.
    top: Top,
}

impl<P> Clone for Admin<P> {
    fn clone(&self) -> Self {
        Self { process: self.process.clone(), walk: self.walk.clone(), top: self.top.clone() }
    }
}

/// Paths and their handlers.
type Routes<P> = Vec<(&'static str, MethodRouter<Admin<P>>)>;

fn routed<P: Process>(routes: Routes<P>) -> Router<Admin<P>> {
    let add = |router: Router<Admin<P>>, (path, service)| router.route(path, service);
    let router = routes.into_iter().fold(Router::new(), add);
    router.method_not_allowed_fallback(async || ApiError::bad_method())
}

/// The pages that are open to every client that reaches the listener.
fn pages<P: Process>() -> Routes<P> {
    let live = async |State(it): State<Admin<P>>| verdict(it.process.live());
    let ready = async |State(it): State<Admin<P>>| verdict(it.process.ready());
    let started = async |State(it): State<Admin<P>>| verdict(it.process.started());
    vec![
        ("/", get(live::root)),
        ("/metrics", get(metrics::<P>)),
        ("/livez", get(live)),
        ("/readyz", get(ready)),
        ("/startupz", get(started)),
        ("/stats", get(live::page::<P>)),
        ("/stats/live", get(live::socket::<P>)),
        ("/stats.json", get(stats_json::<P>)),
        ("/badge.svg", get(badge::<P>)),
        ("/runbook/{alert}", get(runbook::section)),
    ]
}

async fn metrics<P: Process>(State(admin): State<Admin<P>>) -> impl IntoResponse {
    let text = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    ([text], admin.process.metrics())
}

async fn stats_json<P: Process>(State(admin): State<Admin<P>>) -> impl IntoResponse {
    (JSON, stats::json(&admin.process.stats()))
}

async fn badge<P: Process>(State(admin): State<Admin<P>>) -> impl IntoResponse {
    // As of this second; before the first sample, of now.
    let peers = admin.process.board().latest().map(|sample| sample.store.peers());
    let peers = peers.unwrap_or_else(|| admin.process.stats().peers());
    let head = [
        (header::CONTENT_TYPE, "image/svg+xml".to_owned()),
        (header::CACHE_CONTROL, format!("public, max-age={BADGE_AGE_S_MAX}")),
        (header::CONTENT_SECURITY_POLICY, BADGE_POLICY.to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    (head, drawing::badge(peers))
}

/// Current figures must not be cached.
const NOT_KEPT: (HeaderName, &str) = (header::CACHE_CONTROL, "no-store");

/// The headers of a JSON response.
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

    /// A process that is never constructed: routes do not depend on it.
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
