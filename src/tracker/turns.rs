//! Whose turn it is where only one connect in four is answered.
//!
//! Clients that ask again are to get through soon, whatever others do meanwhile. So the connects
//! of each address and port are counted by themselves: whoever asks four times through one port is
//! answered once, for certain, unless somebody forges that very port as well; then the odds are
//! one in four each time. Counts are shared where hashes collide: with more clients at once than
//! there are counts, it comes to the same odds.

use std::net::SocketAddr;

use ahash::RandomState;

/// Counts kept: 4 KiB of a worker's cache.
const COUNTS: usize = 4096;

/// One worker's counts of connects in vain.
pub(super) struct Turns {
    counts: Box<[u8; COUNTS]>,
    keys: RandomState,
}

impl Default for Turns {
    fn default() -> Self {
        Self { counts: Box::new([0; COUNTS]), keys: RandomState::new() }
    }
}

impl Turns {
    /// Of so many connects, the last is answered.
    const ONE_IN: u8 = 4;

    /// Counts one more connect; says whether it is the one to be answered.
    pub(super) fn comes(&mut self, source: SocketAddr) -> bool {
        let hash = self.keys.hash_one((source.ip(), source.port()));
        #[expect(clippy::cast_possible_truncation, reason = "a place among counts")]
        let count = &mut self.counts[hash as usize % COUNTS];
        *count = count.wrapping_add(1);
        count.is_multiple_of(Self::ONE_IN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_four_times_is_answered_once_whatever_another_port_does() {
        let victim: SocketAddr = "8.8.8.8:6881".parse().unwrap();
        let mut turns = Turns { keys: RandomState::with_seeds(1, 2, 3, 4), ..Turns::default() };
        let forger = SocketAddr::new(victim.ip(), 7);
        for between in [0, 1, 2, 3, 1000] {
            let answered = (0..4).filter(|_| {
                (0..between).for_each(|_| _ = turns.comes(forger));
                turns.comes(victim)
            });
            assert_eq!(answered.count(), 1, "{between}");
        }
    }

    #[test]
    fn of_many_ports_one_in_four_is_answered() {
        let mut turns = Turns::default();
        let all = (0..64_000).map(|it| SocketAddr::new([8, 8, 8, 8].into(), it));
        let answered = all.filter(|it| turns.comes(*it)).count();
        // Each count has one to three left over at the end.
        assert!((14_000..=16_000).contains(&answered), "{answered}");
    }
}
