//! What naive models of swarms count alike: peers by role and kind, in a torrent and in all.

use skep::store::{Role, StoreTotals};
use skep::types::{PeerKind, ScrapeEntry};

/// What a scrape tells of peers with these roles.
pub(crate) fn counts(completed: u32, roles: impl Iterator<Item = Role>) -> ScrapeEntry {
    let mut counts = ScrapeEntry { completed, ..ScrapeEntry::default() };
    for role in roles {
        counts.seeders += u32::from(role == Role::Seeder);
        counts.leechers += u32::from(role != Role::Seeder);
        counts.downloaders += u32::from(role == Role::Leecher);
    }
    counts
}

/// The sums over torrents, each given by its peers.
pub(crate) fn totals<P: Iterator<Item = (PeerKind, Role)>>(
    completed: u64,
    torrents: impl Iterator<Item = P>,
) -> StoreTotals {
    let mut sum = StoreTotals { completed, ..StoreTotals::default() };
    for peers in torrents {
        let mut has_peers = false;
        for (kind, role) in peers {
            has_peers = true;
            match role {
                Role::Seeder => sum.seeders[kind as usize] += 1,
                Role::Leecher | Role::Paused => sum.leechers[kind as usize] += 1,
            }
        }
        sum.torrents += 1;
        sum.active_torrents += u64::from(has_peers);
    }
    sum
}
