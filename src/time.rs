//! Time in skep: a number that workers read once per batch and pass in.

/// A moment: nanoseconds since the Unix epoch, taken from the wall clock once at start and from the
/// monotonic clock after that. It never jumps. Two nodes differ as much as their wall clocks
/// differed when they were started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Now {
    ns: u64,
}

/// Nanoseconds in a second.
const NS_PER_S: u64 = 1_000_000_000;

impl Now {
    /// A moment from nanoseconds since the Unix epoch.
    pub const fn from_ns(ns: u64) -> Self {
        Self { ns }
    }

    /// A moment from whole seconds since the Unix epoch.
    pub const fn from_s(seconds: u64) -> Self {
        Self { ns: seconds * NS_PER_S }
    }

    /// Nanoseconds since the Unix epoch.
    pub const fn ns(self) -> u64 {
        self.ns
    }

    /// Whole seconds since the Unix epoch.
    pub const fn seconds(self) -> u64 {
        self.ns / NS_PER_S
    }

    /// This moment, some seconds later.
    #[must_use]
    pub const fn plus_s(self, seconds: u64) -> Self {
        Self { ns: self.ns + seconds * NS_PER_S }
    }

    /// Nanoseconds from `earlier` to this moment; 0 if `earlier` is later.
    pub const fn ns_since(self, earlier: Self) -> u64 {
        self.ns.saturating_sub(earlier.ns)
    }
}
