//! What the simulation holds against the tracker: one name for each invariant, so that a test can
//! say which of them a fault breaks.

/// What must hold, whatever happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Invariant {
    /// An unverified sender never gets more bytes than it sent.
    NoAmplification,
    /// What is no request, or comes without a valid connection id, is met with silence.
    Silence,
    /// A connection id is accepted for 128 seconds, whatever is restarted or rolled over.
    IdsStayValid,
    /// Nobody is handed himself.
    NeverTheAsker,
    /// Nobody is handed anyone twice.
    Distinct,
    /// Nobody is told of an address that is none of his business, or of ports 0 and 1.
    RightScope,
    /// Seeders are not handed seeders.
    NoSeedersForSeeders,
    /// Only those are handed out who announced, did not stop, and are not forgotten.
    OnlyMembers,
    /// As many peers as are wanted, allowed and there.
    HowMany,
    /// Counts are those of the swarm.
    Counts,
    /// A completed count that two networks made never falls but by a crash or a day of emptiness.
    CompletedNeverFalls,
    /// Whoever announces in time stays.
    NobodyIsLost,
    /// Whoever falls silent is forgotten in time.
    SilentAreForgotten,
    /// What is counted adds up.
    CountsAddUp,
    /// Only those who ask for too much are limited.
    OnlyGreedAreLimited,
    /// A snapshot holds all there is, comes back whole, and never comes back damaged.
    Snapshots,
    /// Offers and answers stay within their swarm.
    MailStaysInside,
    /// Responses can be read by a strict client.
    Readable,
}

/// An invariant that does not hold.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) invariant: Invariant,
    pub(crate) what: String,
}

pub(crate) type Judged<T = ()> = Result<T, Violation>;

/// Holds an invariant to be true.
pub(crate) fn hold(holds: bool, invariant: Invariant, what: impl FnOnce() -> String) -> Judged {
    if holds { Ok(()) } else { Err(Violation { invariant, what: what() }) }
}
