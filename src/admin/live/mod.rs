//! The operators' statistics page: `/stats` with the figures of this second in tables, and
//! `/stats/live`, a WebSocket that keeps a page up to date and sends it the last five minutes and
//! the last 24 hours.
//!
//! ```text
//! process ─▶ Sample, once a second ─▶ StatsHub ─┬▶ tables ─▶ page       works without scripts
//!                                     │         └▶ history, sample, minutes ─▶ socket ─▶ charts
//!                                     └▶ DayHistory, a row a minute ─▶ the process's file
//! ```
//!
//! Page and socket are open to every client that reaches the listener, as the other figures are.
//! Only the list of the largest torrents needs access to the API, which `access` checks.

mod board;
mod day;
mod page;
mod sample;
mod socket;
mod status;
mod tables;
mod top;

pub use board::{HISTORY_S, StatsHub, VIEWERS_MAX};
pub use day::{DAY_BYTES_MAX, DayFileError, DayHistory};
pub use sample::{Flow, METRICS, MetricFlow, Sample, WorkerLoad};
pub use status::STATUS_METRICS;
pub(crate) use status::{
    EXPIRY_NEAR_S, PROXY_SEEN_S, StatusResponse, StatusTorrents, StatusWarning,
};

pub(super) use page::{page, root};
pub(super) use socket::socket;
pub(super) use status::status;
pub(super) use top::Top;
