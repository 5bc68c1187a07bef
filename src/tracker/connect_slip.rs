//! Chooses the connects that get a response when only one in four does.
//!
//! A client that retries should get a response soon, whatever other sources send. So the connects
//! of each address and port are counted separately: four connects from one port get exactly one
//! response, unless that port is forged as well; then the probability is 1 in 4 each time.
//! Colliding hashes share a count: with more clients than counts, the probability is the same.

use std::net::SocketAddr;

use ahash::RandomState;

/// Counts kept: 4 KiB of a worker's cache.
const COUNTS: usize = 4096;

/// One worker's counts of connects without a response.
pub(super) struct ConnectSlip {
    counts: Box<[u8; COUNTS]>,
    keys: RandomState,
}

impl Default for ConnectSlip {
    fn default() -> Self {
        Self { counts: Box::new([0; COUNTS]), keys: RandomState::new() }
    }
}

impl ConnectSlip {
    /// Of this many connects, the last gets a response.
    const ONE_IN: u8 = 4;

    /// Counts one more connect; returns whether it gets a response.
    pub(super) fn slips(&mut self, source: SocketAddr) -> bool {
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
        let mut slip =
            ConnectSlip { keys: RandomState::with_seeds(1, 2, 3, 4), ..ConnectSlip::default() };
        let forger = SocketAddr::new(victim.ip(), 7);
        for between in [0, 1, 2, 3, 1000] {
            let answered = (0..4).filter(|_| {
                (0..between).for_each(|_| _ = slip.slips(forger));
                slip.slips(victim)
            });
            assert_eq!(answered.count(), 1, "{between}");
        }
    }

    #[test]
    fn of_many_ports_one_in_four_is_answered() {
        let mut slip = ConnectSlip::default();
        let all = (0..64_000).map(|it| SocketAddr::new([8, 8, 8, 8].into(), it));
        let answered = all.filter(|it| slip.slips(*it)).count();
        // Each count has up to three connects left over at the end.
        assert!((14_000..=16_000).contains(&answered), "{answered}");
    }
}
