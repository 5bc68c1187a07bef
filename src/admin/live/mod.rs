//! The operators' statistics page: `/stats` with the figures of this second in tables, and
//! `/stats/live`, a WebSocket that keeps a page up to date and gives it the last five minutes.
//!
//! ```text
//! process ─▶ Sample, once a second ─▶ Board ─┬▶ tables ─▶ page       what needs no script
//!                                            └▶ history, sample ─▶ socket ─▶ charts
//! ```
//!
//! Page and socket are for everyone who reaches the listener, as the other figures are. Only the
//! list of the largest torrents is for those whom the API serves: `access` decides.

mod board;
mod page;
mod sample;
mod socket;
mod tables;
mod top;

pub use board::{HISTORY_S, StatsHub, VIEWERS_MAX};
pub use sample::{Flow, METRICS, MetricFlow, Sample, WorkerLoad};

pub(super) use page::page;
pub(super) use socket::socket;
pub(super) use top::Top;
