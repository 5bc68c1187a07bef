//! Load shedding: the work that an overloaded worker drops, and in what order.
//!
//! The signal is its receive queue: when it is half full, responses will be late; when it is full,
//! the kernel drops every further datagram, including verified announces of honest clients. So the
//! least important work is dropped first: scrapes, then the storing of new torrents, then connects
//! beyond one in four. Announces of known torrents are never shed here.
//!
//! (Full batches are not a signal: at its peak a tracker reads full batches from a queue that is
//! nearly empty.)

use strum::{EnumCount, VariantArray};

/// The dropped work; each step includes those before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, EnumCount, VariantArray)]
pub enum Shedding {
    /// Nothing is dropped.
    #[default]
    Nothing,
    /// Scrapes are dropped.
    Scrapes,
    /// Announces of unknown torrents get a response, but are not stored.
    NewTorrents,
    /// Three of four connects are dropped.
    Connects,
}

impl Shedding {
    /// Every step, in order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The fill level of the queue at which each step begins, in thousandths.
    const BEGINS: [u32; 4] = [0, 500, 650, 800];

    /// How far below that the fill level must fall for the step to end (hysteresis), in
    /// thousandths.
    const MARGIN: u32 = 200;

    /// The step that follows this one at a fill level of the receive queue, in thousandths.
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
