//! What a worker leaves undone when it cannot keep up, and in what order.
//!
//! The sign is its receive queue: half full, responses will be late; full, the kernel
//! drops whatever comes next, the verified announces of honest clients included. So the cheapest to
//! lose goes first: scrapes, then the storing of new torrents, then connects beyond one in four.
//! Announces of known torrents are never shed here.
//!
//! (Full batches are not a sign: at its peak a tracker takes full batches from a queue that is
//! nearly empty.)

use strum::{EnumCount, VariantArray};

/// What is left undone; each step includes those before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, EnumCount, VariantArray)]
pub enum Shedding {
    /// All is done.
    #[default]
    Nothing,
    /// Scrapes are dropped.
    Scrapes,
    /// Announces of unknown torrents get a response, but are not stored.
    NewTorrents,
    /// Of four connects, three are dropped.
    Connects,
}

impl Shedding {
    /// Every step, in order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// How full the queue has to be for a step, in thousandths.
    const BEGINS: [u32; 4] = [0, 500, 650, 800];

    /// How far below that it has to fall for the step to end: it must not flicker.
    const MARGIN: u32 = 200;

    /// The step after this one where the receive queue is so full, in thousandths.
    #[must_use]
    pub fn next(self, queue_permille: u32) -> Self {
        let begun = Self::ALL.into_iter().rev();
        let mut begun = begun.filter(|shedding| {
            let margin = if *shedding <= self { Self::MARGIN } else { 0 };
            queue_permille >= Self::BEGINS[*shedding as usize].saturating_sub(margin)
        });
        begun.next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuller_the_queue_the_more_is_shed() {
        let from_calm = |permille| Shedding::Nothing.next(permille);
        assert_eq!(from_calm(0), Shedding::Nothing);
        assert_eq!(from_calm(499), Shedding::Nothing);
        assert_eq!(from_calm(500), Shedding::Scrapes);
        assert_eq!(from_calm(650), Shedding::NewTorrents);
        assert_eq!(from_calm(800), Shedding::Connects);
        assert_eq!(from_calm(u32::MAX), Shedding::Connects);
    }

    #[test]
    fn a_step_ends_well_below_where_it_began() {
        assert_eq!(Shedding::Connects.next(600), Shedding::Connects);
        assert_eq!(Shedding::Connects.next(599), Shedding::NewTorrents);
        assert_eq!(Shedding::Scrapes.next(300), Shedding::Scrapes);
        assert_eq!(Shedding::Scrapes.next(600), Shedding::Scrapes);
        assert_eq!(Shedding::Scrapes.next(299), Shedding::Nothing);
        assert_eq!(Shedding::Connects.next(0), Shedding::Nothing, "it is over at once");
    }
}
