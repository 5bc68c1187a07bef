//! What it takes to let real BitTorrent clients meet through a running skep: a torrent, a tracker
//! and a client program for each side. Everything lives on this host and in temporary folders.
#![allow(dead_code, reason = "each test program uses a part")]

use skep::types::Family;

use crate::meeting::{Meeting, Role};
use crate::programs::Party;

/// The seeder is known to the tracker before the leecher asks; the file arrives.
pub(crate) fn leecher_calls(family: Family, seeder: Party, leecher: Party) {
    let Some(meeting) = Meeting::of(family, seeder, leecher) else { return };
    let _seeder = meeting.start(Role::Seeder);
    meeting.wait_for(1, 0);
    let _leecher = meeting.start(Role::Leecher);
    meeting.wait_for_transfer();
}

/// The leecher is known to the tracker before the seeder asks; the file arrives.
pub(crate) fn seeder_calls(family: Family, seeder: Party, leecher: Party) {
    let Some(meeting) = Meeting::of(family, seeder, leecher) else { return };
    let _leecher = meeting.start(Role::Leecher);
    meeting.wait_for(0, 1);
    let _seeder = meeting.start(Role::Seeder);
    meeting.wait_for_transfer();
}
