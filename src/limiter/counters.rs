//! The limiter's counters: the results of requests for each table. Each worker has its own block,
//! as in [`crate::counters`].

use strum::{EnumCount, IntoStaticStr, VariantArray};

use crate::counters::Counter;

/// The tables, one for each kind of limited work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum LimitTable {
    /// Work for sources with a verified address.
    Verified,
    /// Responses to sources with an unverified address.
    Unverified,
    /// Torrents that are new to the store.
    NewTorrent,
    /// Stops. A stop is charged only if its peer is not in the swarm; over the limit stops are
    /// still applied, but get no response.
    Stop,
    /// Work over TCP besides announces and scrapes.
    Connection,
}

impl LimitTable {
    /// Every table, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// The result of a request. Each request to the limiter is counted under exactly one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum LimitAction {
    /// Within the limit.
    Passed,
    /// Over the limit. In a dry run it is served nevertheless.
    Limited,
    /// Over the limit, but selected to get a response nevertheless.
    Slipped,
    /// From an exempt network.
    Exempt,
}

impl LimitAction {
    /// Every action, in index order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// The counters of one worker's handle. Written by that worker alone; aligned so that no two
/// workers share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct LimitCounters([[Counter; LimitAction::ALL.len()]; LimitTable::ALL.len()]);

impl LimitCounters {
    /// The number of requests to this table with this result.
    #[inline]
    pub fn of(&self, table: LimitTable, action: LimitAction) -> &Counter {
        &self.0[table as usize][action as usize]
    }
}
