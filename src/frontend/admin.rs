//! The operators' front end: `/metrics` for Prometheus, `/livez /readyz /startupz` for Kubernetes.
//!
//! Serves whatever the process says of itself through [`Process`]; opens no socket. A probe's
//! answer has a one-line body with the reason, for people who ask by hand.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

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
}

/// The pages.
pub fn router<P: Process>(process: Arc<P>) -> Router {
    let live = |State(it): State<Arc<P>>| async move { verdict(it.live()) };
    let ready = |State(it): State<Arc<P>>| async move { verdict(it.ready()) };
    let started = |State(it): State<Arc<P>>| async move { verdict(it.started()) };
    Router::new()
        .route("/metrics", get(metrics::<P>))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/startupz", get(started))
        .with_state(process)
}

async fn metrics<P: Process>(State(process): State<Arc<P>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], process.metrics())
}

fn verdict(it: Result<(), String>) -> (StatusCode, String) {
    match it {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
    }
}
