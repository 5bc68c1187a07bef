//! What the limiter counts: for each table, what came of each request. A worker's own, as all that
//! [`crate::counters`] has.

use strum::{EnumCount, IntoStaticStr, VariantArray};

use crate::counters::Counter;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum LimitTable {
    /// Work for sources that have proved their address.
    Verified,
    /// Responses to sources that have not.
    Unverified,
    /// Torrents that the store does not know yet.
    NewTorrent,
    /// Stops. Those of peers that are not there are charged; over the limit all are applied, but
    /// none gets a response.
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

/// What came of a request. Each that is asked about is counted as exactly one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum LimitAction {
    /// Within the limit.
    Passed,
    /// Over the limit. In a dry run it passed all the same.
    Limited,
    /// Over the limit, and the one in some that gets a response in spite of it.
    Slipped,
    /// From a network under no limit.
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

/// What one worker's handle counts. Written by that worker alone; aligned so that no worker's
/// counting takes a cache line from another's core.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct LimitCounters([[Counter; LimitAction::ALL.len()]; LimitTable::ALL.len()]);

impl LimitCounters {
    /// How often this came of a request to this table.
    #[inline]
    pub fn of(&self, table: LimitTable, action: LimitAction) -> &Counter {
        &self.0[table as usize][action as usize]
    }
}
