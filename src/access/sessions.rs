//! A passkey's current sessions and its totals. A session is a torrent and a peer id; each of its
//! announces adds the bytes moved since the previous one.
//!
//! # Across a restart
//!
//! A snapshot holds sessions together with the totals they led to, copied at one moment, so that a
//! session's next announce adds what it has moved since. In three further cases, too, no byte is
//! counted twice or lost:
//!
//! - A session announces to this process before its snapshot is restored: at a start that serves
//!   while it restores, or beside a predecessor that this process takes over from. Both processes
//!   have then added differences of the same counter. `Early` remembers them; when the session is
//!   restored, their union replaces them: up to the higher of both last values.
//! - It ends here before that: the same applies, and the session is not restored.
//! - The saved totals are newer than the snapshot (both are written once a minute, and the process
//!   was killed): what sessions add next was counted already. The total continues from the
//!   snapshot's, and is shown once it is above the saved one.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::RandomState;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::passkey::{Digest, Limits, PEERS_MAX, SessionReport, Totals};
use crate::time::Now;
use crate::types::{Event, InfoHash, PeerId};

/// Bytes uploaded and downloaded.
type Moved = [u64; 2];

/// A key's current sessions and its totals.
#[derive(Default)]
pub(super) struct Sessions {
    /// Sorted by torrent. A tree costs the same per session for a seedbox's thousands as for a few.
    all: BTreeMap<(InfoHash, PeerId), PeerSession>,
    /// Number of torrents of these sessions.
    torrents: u32,
    noted: Noted,
    minute: u64,
    announces: u32,
    /// The sum of what sessions have moved.
    sums: Totals,
    /// The totals saved before the start: those shown are never less.
    written: Totals,
    /// Sessions that announced before the saved ones were restored; `None` once restoring has
    /// ended.
    early: Option<Early>,
}

/// Bytes per session, with its part of the tree's nodes: 105 to 115 were measured.
const SESSION_BYTES: u64 = 120;

/// Further bytes for the first session of a key: the tree's first node.
const FIRST_BYTES: u64 = 800;

/// Memory of the sessions of all keys, and its limit.
pub struct SessionBytes {
    used: AtomicU64,
    max: AtomicU64,
}

impl Default for SessionBytes {
    /// Without a limit.
    fn default() -> Self {
        Self { used: AtomicU64::new(0), max: AtomicU64::new(u64::MAX) }
    }
}

impl SessionBytes {
    /// Bytes in use, estimated.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Sets the limit, in bytes. Existing sessions stay.
    pub fn allow(&self, max: u64) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// The limit, in bytes.
    pub fn max(&self) -> u64 {
        self.max.load(Ordering::Relaxed)
    }

    fn admits(&self, bytes: u64) -> bool {
        self.used().saturating_add(bytes) <= self.max()
    }
}

/// A key's part of [`SessionBytes`], released when dropped.
#[derive(Default)]
struct Noted {
    of_all: Arc<SessionBytes>,
    bytes: u64,
}

impl Noted {
    fn set(&mut self, bytes: u64) {
        self.of_all.used.fetch_add(bytes.wrapping_sub(self.bytes), Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// One peer's latest announce.
struct PeerSession {
    at: Now,
    moved: Moved,
    left: u64,
}

/// Announces before the sessions were restored.
#[derive(Default)]
struct Early {
    sessions: HashMap<(InfoHash, PeerId), Meanwhile, RandomState>,
    /// The totals before these announces: those saved before the start, or those of the snapshot.
    base: Totals,
    /// Whether `base` is final, because a session of the snapshot continues.
    is_settled: bool,
}

/// A session that announced before it was restored.
#[derive(Default)]
struct Meanwhile {
    latest: Moved,
    added: Moved,
    /// Whether the client restarted: its counters do not continue those of the snapshot.
    is_anew: bool,
}

/// A session in a snapshot: 68 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SavedSession {
    /// The torrent.
    pub info_hash: InfoHash,
    /// The peer.
    pub peer_id: PeerId,
    /// Bytes uploaded since it began, as of its latest announce.
    pub uploaded: U64,
    /// Bytes downloaded, likewise.
    pub downloaded: U64,
    /// Bytes still missing; all ones: unknown.
    pub left: U64,
    /// Seconds from the latest announce to the snapshot.
    pub age_s: U32,
}

const _: () = assert!(size_of::<SavedSession>() == 68);

/// A key's sessions and their totals, or a part of the sessions with the same totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedKey<'a> {
    /// The key.
    pub digest: Digest,
    /// The key's totals.
    pub totals: Totals,
    /// All or some of its sessions.
    pub sessions: &'a [SavedSession],
}

/// The times of a save and its restore.
#[derive(Clone, Copy, Debug)]
pub struct RestoreTimes {
    /// The moment of the snapshot.
    pub at: Now,
    /// The current time.
    pub now: Now,
    /// Seconds of silence after which a session is not restored.
    pub peer_age_s_max: u32,
}

impl Sessions {
    /// No sessions, and the saved totals. `awaits`: whether saved sessions may be restored later.
    /// The memory of sessions is counted in `of_all`.
    pub(super) fn new(written: Totals, awaits: bool, of_all: Arc<SessionBytes>) -> Self {
        let noted = Noted { of_all, bytes: 0 };
        let mut sessions = Self { sums: written, written, noted, ..Self::default() };
        if awaits {
            sessions.await_restoring();
        }
        sessions
    }

    /// From now on, announces are remembered until [`Sessions::end_restoring`].
    pub(super) fn await_restoring(&mut self) {
        self.early = Some(Early { base: self.written, ..Early::default() });
    }

    /// Whether saved sessions may still be restored.
    #[cfg(test)]
    pub(super) fn awaits_restoring(&self) -> bool {
        self.early.is_some()
    }

    /// Whether there are no sessions.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The totals, never less than the saved ones.
    pub(super) fn totals(&self) -> Totals {
        self.sums.max(&self.written)
    }

    /// Number of torrents, number of peers, and the sum of their missing bytes, as far as known.
    pub(super) fn usage(&self) -> (u32, u32, u64) {
        let lacks = self.all.values().map(|it| it.left).filter(|it| *it != u64::MAX);
        (self.torrents, self.peers(), lacks.fold(0, u64::saturating_add))
    }

    fn peers(&self) -> u32 {
        u32::try_from(self.all.len()).unwrap_or(u32::MAX)
    }

    /// Whether any peer announces the torrent.
    fn has_torrent(&self, info_hash: &InfoHash) -> bool {
        let first = (*info_hash, PeerId([0; 20]));
        self.all.range(first..).next().is_some_and(|(it, _)| it.0 == *info_hash)
    }

    /// Adds the bytes that the session has moved since its previous announce; `None`: over a limit.
    /// Without memory for a new session none begins: its announces are counted, but add no bytes.
    pub(super) fn count(
        &mut self,
        now: Now,
        report: &SessionReport<'_>,
        limits: &Limits,
    ) -> Option<()> {
        // A stop costs nothing and frees a session, so it is not limited.
        if report.event != Event::Stopped && !self.may_announce(now, limits) {
            return None;
        }
        let latest = [report.uploaded, report.downloaded];
        let before = self.all.get_mut(&(*report.info_hash, *report.peer_id));
        // Lower than before: the client restarted with the same peer id.
        let is_anew = report.event == Event::Started
            || before.as_ref().is_some_and(|it| latest[0] < it.moved[0] || latest[1] < it.moved[1]);
        let added = match &before {
            Some(before) if report.event != Event::Started => increase(latest, before.moved),
            _ => [0; 2],
        };
        let after = PeerSession { at: now, moved: latest, left: report.left };
        if report.event == Event::Stopped {
            self.leave(report.info_hash, report.peer_id);
        } else if let Some(before) = before {
            *before = after;
        } else {
            if self.is_full_for(report.info_hash, limits) {
                return None;
            }
            if self.has_memory() {
                self.put(report.info_hash, report.peer_id, after);
            }
        }
        if let Some(early) = &mut self.early {
            early.note(report, latest, added, is_anew);
        }
        self.sums.add(added, 1);
        Some(())
    }

    /// Removes peers that have been silent for `age_s_max` seconds.
    pub(super) fn sweep(&mut self, now: Now, age_s_max: u32) {
        let mut latest = None;
        self.torrents = 0;
        self.all.retain(|(info_hash, _), session| {
            let stays = session.at.plus_s(u64::from(age_s_max)) > now;
            if stays && latest.replace(*info_hash) != Some(*info_hash) {
                self.torrents += 1;
            }
            stays
        });
        self.note_bytes();
    }

    /// Removes a peer.
    pub(super) fn leave(&mut self, info_hash: &InfoHash, peer_id: &PeerId) {
        if self.all.remove(&(*info_hash, *peer_id)).is_some() {
            self.torrents -= u32::from(!self.has_torrent(info_hash));
            self.note_bytes();
        }
    }

    /// Copies all sessions into `sessions`, replacing its contents; returns their totals.
    pub(super) fn save(&self, at: Now, sessions: &mut Vec<SavedSession>) -> Totals {
        sessions.clear();
        sessions.extend(self.all.iter().map(|((info_hash, peer_id), session)| {
            let age_s = at.ns_since(session.at) / 1_000_000_000;
            SavedSession {
                info_hash: *info_hash,
                peer_id: *peer_id,
                uploaded: session.moved[0].into(),
                downloaded: session.moved[1].into(),
                left: session.left.into(),
                age_s: u32::try_from(age_s).unwrap_or(u32::MAX).into(),
            }
        }));
        self.sums
    }

    /// Continues saved sessions. Does nothing after [`Sessions::end_restoring`].
    pub(super) fn restore(&mut self, saved: &SavedKey<'_>, terms: &RestoreTimes, limits: &Limits) {
        let Some(mut early) = self.early.take() else { return };
        let age_ns = terms.now.ns_since(terms.at);
        for session in saved.sessions {
            let age_ns = age_ns.saturating_add(u64::from(session.age_s.get()) * 1_000_000_000);
            let is_silent = age_ns > u64::from(terms.peer_age_s_max) * 1_000_000_000;
            let meanwhile = early.sessions.remove(&(session.info_hash, session.peer_id));
            if is_silent && meanwhile.is_none() {
                continue;
            }
            self.go_on_from(&saved.totals, &mut early, true);
            let moved = [session.uploaded.get(), session.downloaded.get()];
            match meanwhile {
                Some(meanwhile) => self.merge(session, moved, &meanwhile),
                None => {
                    let at = Now::from_ns(terms.now.ns().saturating_sub(age_ns));
                    self.put_if_room(
                        session,
                        PeerSession { at, moved, left: session.left.get() },
                        limits,
                    );
                }
            }
        }
        self.go_on_from(&saved.totals, &mut early, false);
        self.early = Some(early);
    }

    /// From now on, unknown sessions are new.
    pub(super) fn end_restoring(&mut self) {
        self.early = None;
    }

    /// Continues from the totals of the saved sessions; if none of the sessions continues, only as
    /// far as they are above those saved before the start.
    fn go_on_from(&mut self, saved: &Totals, early: &mut Early, has_sessions: bool) {
        if early.is_settled {
            return;
        }
        let base = if has_sessions { *saved } else { saved.max(&self.written) };
        let base = Totals { announces: saved.announces.max(self.written.announces), ..base };
        let own = self.sums.since(&early.base);
        self.sums = base;
        self.sums.add([own.uploaded, own.downloaded], own.announces);
        (early.base, early.is_settled) = (base, has_sessions);
    }

    /// Corrects the totals for a session that both processes counted: they rise to the higher of
    /// both last values, and no byte is counted twice.
    fn merge(&mut self, saved_session: &SavedSession, saved: Moved, meanwhile: &Meanwhile) {
        if meanwhile.is_anew {
            return;
        }
        let Meanwhile { latest, added, .. } = *meanwhile;
        let highest = [latest[0].max(saved[0]), latest[1].max(saved[1])];
        self.sums.take_away(added);
        self.sums.add(increase(highest, saved), 0);
        if let Some(session) = self.all.get_mut(&(saved_session.info_hash, saved_session.peer_id)) {
            session.moved = highest;
        }
    }

    fn put_if_room(&mut self, saved_session: &SavedSession, session: PeerSession, limits: &Limits) {
        let is_known = self.all.contains_key(&(saved_session.info_hash, saved_session.peer_id));
        if !is_known && !self.is_full_for(&saved_session.info_hash, limits) && self.has_memory() {
            self.put(&saved_session.info_hash, &saved_session.peer_id, session);
        }
    }

    /// Whether another peer of a torrent would exceed a limit.
    fn is_full_for(&self, info_hash: &InfoHash, limits: &Limits) -> bool {
        self.peers() >= limits.peers.min(PEERS_MAX)
            || (self.torrents >= limits.torrents && !self.has_torrent(info_hash))
    }

    /// Whether there is memory for another session.
    fn has_memory(&self) -> bool {
        let first = if self.all.is_empty() { FIRST_BYTES } else { 0 };
        self.noted.of_all.admits(first + SESSION_BYTES)
    }

    /// Inserts a new session.
    fn put(&mut self, info_hash: &InfoHash, peer_id: &PeerId, session: PeerSession) {
        self.torrents += u32::from(!self.has_torrent(info_hash));
        self.all.insert((*info_hash, *peer_id), session);
        self.note_bytes();
    }

    fn note_bytes(&mut self) {
        let first = if self.all.is_empty() { 0 } else { FIRST_BYTES };
        self.noted.set(first + self.all.len() as u64 * SESSION_BYTES);
    }

    fn may_announce(&mut self, now: Now, limits: &Limits) -> bool {
        let minute = now.seconds() / 60;
        if self.minute != minute {
            (self.minute, self.announces) = (minute, 0);
        }
        self.announces = self.announces.saturating_add(1);
        self.announces <= limits.announces_per_minute
    }
}

impl Early {
    fn note(&mut self, report: &SessionReport<'_>, latest: Moved, added: Moved, is_anew: bool) {
        let key = (*report.info_hash, *report.peer_id);
        if self.sessions.len() >= PEERS_MAX as usize && !self.sessions.contains_key(&key) {
            return;
        }
        let entry = self.sessions.entry(key).or_default();
        entry.latest = latest;
        let sum = |at: usize| entry.added[at].saturating_add(added[at]);
        entry.added = [sum(0), sum(1)];
        entry.is_anew |= is_anew;
    }
}

/// The increase of each counter, 0 if it has fallen.
fn increase(latest: Moved, before: Moved) -> Moved {
    [latest[0].saturating_sub(before[0]), latest[1].saturating_sub(before[1])]
}

#[cfg(test)]
mod tests;
