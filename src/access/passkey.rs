//! Passkeys of a private tracker: clients send one with every announce; its traffic is summed up.
//!
//! A key is 16 random bytes. It is shown once, as 32 hexadecimal digits; only its SHA-256 is kept.
//! So a copy of the database gives no access, and the time of a lookup reveals nothing about keys.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ahash::RandomState;
use dashmap::DashMap;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::sessions::{RestoreTimes, SavedKey, SavedSession, SessionBytes, Sessions};
use crate::time::Now;
use crate::types::{Event, InfoHash, PeerId, Refusal};

/// Maximum number of keys that can be issued.
pub const KEYS_MAX: usize = 1 << 20;

/// Maximum number of peers of one key, whatever its limits: each takes some 110 bytes, the first
/// 900.
pub const PEERS_MAX: u32 = 100_000;

/// The longest name of a key, in bytes.
pub const NAME_BYTES_MAX: usize = 100;

/// Length of a passkey, in bytes.
const KEY_BYTES: usize = 16;

/// The SHA-256 of a key, by which it is looked up.
pub type Digest = [u8; 32];

/// The limits of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Announces per minute. Stops do not count: they cost nothing.
    pub announces_per_minute: u32,
    /// Torrents at once.
    pub torrents: u32,
    /// Peers at once, over all torrents.
    pub peers: u32,
}

/// Lower bounds of the limits on announces and peers, where these follow from `torrents`.
const ANNOUNCES_MIN: u32 = 600;
const PEERS_MIN: u32 = 10_000;

impl Limits {
    /// The given limits; the others follow from `torrents`. A client announces all of its torrents
    /// when it starts. A key may have clients in two places, which then have to start in different
    /// minutes.
    pub fn of(
        announces_per_minute: Option<u32>,
        torrents: Option<u32>,
        peers: Option<u32>,
    ) -> Self {
        let torrents = torrents.unwrap_or(5000); // a seedbox
        let peers = peers.unwrap_or_else(|| torrents.saturating_mul(2).clamp(PEERS_MIN, PEERS_MAX));
        let announces_max = torrents.max(ANNOUNCES_MIN);
        let announces_per_minute = announces_per_minute.unwrap_or(announces_max);
        Self { announces_per_minute, torrents, peers }
    }
}

/// The default before limits followed from `torrents`. It is in the record of each key that was
/// issued without limits then.
const FORMER_DEFAULT: Limits = Limits { announces_per_minute: 600, torrents: 5000, peers: 10_000 };

impl Limits {
    /// The limits in force for those of a stored record: the former default becomes the current
    /// one.
    pub(crate) fn current(self) -> Self {
        if self == FORMER_DEFAULT { Self::default() } else { self }
    }
}

impl Default for Limits {
    /// Enough for a seedbox.
    fn default() -> Self {
        Self::of(None, None, None)
    }
}

/// A key's data that is kept across restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The holder's name, chosen by the operator.
    pub name: String,
    /// The key's limits.
    pub limits: Limits,
    /// When it was issued, in seconds since the Unix epoch.
    pub issued_s: u64,
    /// The key's totals.
    pub totals: Totals,
}

/// The totals of a key, as clients report them, over all its torrents and sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Bytes uploaded.
    pub uploaded: u64,
    /// Bytes downloaded.
    pub downloaded: u64,
    /// Announces that were served.
    pub announces: u64,
}

/// An announce's report on its session.
#[derive(Clone, Copy, Debug)]
pub struct SessionReport<'a> {
    /// The torrent.
    pub info_hash: &'a InfoHash,
    /// The session: a client keeps its peer id while it runs, over all protocols.
    pub peer_id: &'a PeerId,
    /// The announce's event.
    pub event: Event,
    /// Bytes uploaded since the session began.
    pub uploaded: u64,
    /// Bytes downloaded since the session began.
    pub downloaded: u64,
    /// Bytes still missing; all ones: unknown.
    pub left: u64,
}

impl Totals {
    /// The larger value of each field.
    pub(super) fn max(&self, other: &Self) -> Self {
        Self {
            uploaded: self.uploaded.max(other.uploaded),
            downloaded: self.downloaded.max(other.downloaded),
            announces: self.announces.max(other.announces),
        }
    }

    /// The increase since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            uploaded: self.uploaded.saturating_sub(before.uploaded),
            downloaded: self.downloaded.saturating_sub(before.downloaded),
            announces: self.announces.saturating_sub(before.announces),
        }
    }

    /// Adds bytes and announces.
    pub(super) fn add(&mut self, [uploaded, downloaded]: [u64; 2], announces: u64) {
        self.uploaded = self.uploaded.saturating_add(uploaded);
        self.downloaded = self.downloaded.saturating_add(downloaded);
        self.announces = self.announces.saturating_add(announces);
    }

    /// Subtracts bytes that were added before.
    pub(super) fn take_away(&mut self, [uploaded, downloaded]: [u64; 2]) {
        self.uploaded = self.uploaded.saturating_sub(uploaded);
        self.downloaded = self.downloaded.saturating_sub(downloaded);
    }
}

/// All valid keys.
#[derive(Default)]
pub struct PasskeyTable {
    all: DashMap<Digest, Arc<ValidKey>, RandomState>,
    /// Whether saved sessions may still be restored.
    awaits: AtomicBool,
    session_bytes: Arc<SessionBytes>,
}

/// A valid key.
pub struct ValidKey {
    digest: Digest,
    name: String,
    limits: Limits,
    issued_s: u64,
    /// Whether the totals have changed since they were last saved.
    changed: AtomicBool,
    sessions: Mutex<Sessions>,
}

/// The current use of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Torrents it announces.
    pub torrents: u32,
    /// Peers it announces.
    pub peers: u32,
    /// The sum of the bytes that these peers lack, as far as they report it.
    pub left: u64,
}

/// A new key: the digits for its holder, and the digest that is kept.
pub fn generate() -> (String, Digest) {
    let mut bytes = [0; KEY_BYTES];
    // Never fails on a Linux with getrandom; a predictable key would be worse than no tracker.
    getrandom::fill(&mut bytes).unwrap_or_else(|error| unreachable!("no randomness: {error}"));
    (bytes.iter().map(|it| format!("{it:02x}")).collect(), digest(&bytes))
}

fn digest(bytes: &[u8; KEY_BYTES]) -> Digest {
    Sha256::digest(bytes).into()
}

/// The digest of a key of 32 hexadecimal digits; `None` for any other text, which cannot be a key.
pub fn digest_of(digits: &str) -> Option<Digest> {
    parse(digits.as_bytes()).map(|it| digest(&it))
}

/// The id of the key with this digest, for operators: its first 16 digits. It gives no access.
pub fn id_of(digest: &Digest) -> String {
    digest[..8].iter().map(|it| format!("{it:02x}")).collect()
}

/// Parses a key of 32 hexadecimal digits.
fn parse(digits: &[u8]) -> Option<[u8; KEY_BYTES]> {
    let (pairs, rest) = digits.as_chunks::<2>();
    let mut key = [0; KEY_BYTES];
    if pairs.len() != key.len() || !rest.is_empty() {
        return None;
    }
    let nibble = |digit: u8| u8::try_from(char::from(digit).to_digit(16)?).ok();
    for (byte, &[high, low]) in key.iter_mut().zip(pairs) {
        *byte = nibble(high)? << 4 | nibble(low)?;
    }
    Some(key)
}

impl PasskeyTable {
    /// The valid key with these digits.
    #[inline]
    pub fn check(&self, digits: &[u8]) -> Option<Arc<ValidKey>> {
        let key = parse(digits)?;
        self.all.get(&digest(&key)).map(|it| it.clone())
    }

    /// Makes a key valid.
    pub fn insert(&self, digest: Digest, record: &Record) -> Arc<ValidKey> {
        let awaits = self.awaits.load(Ordering::Acquire);
        self.insert_awaiting(digest, record, awaits)
    }

    /// As `insert`, with an earlier reading of `awaits`.
    fn insert_awaiting(&self, digest: Digest, record: &Record, awaits: bool) -> Arc<ValidKey> {
        let key = Arc::new(ValidKey::new(digest, record, awaits, self.session_bytes.clone()));
        self.all.insert(digest, key.clone());
        // Restoring may have ended since that reading, without this key.
        if awaits && !self.awaits.load(Ordering::Acquire) {
            key.sessions().end_restoring();
        }
        key
    }

    /// Makes a key invalid.
    pub fn remove(&self, digest: &Digest) {
        self.all.remove(digest);
    }

    /// Whether the key with this digest is valid.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.all.contains_key(digest)
    }

    /// Number of valid keys.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether no key is valid.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// All keys in the order of their ids.
    pub fn all(&self) -> Vec<Arc<ValidKey>> {
        let mut all: Vec<_> = self.all.iter().map(|it| it.value().clone()).collect();
        all.sort_unstable_by_key(|it| it.digest);
        all
    }

    /// The key with this id.
    pub fn with_id(&self, id: &str) -> Option<Arc<ValidKey>> {
        self.all.iter().find(|it| it.id() == id).map(|it| it.value().clone())
    }

    /// The memory of the sessions of all keys.
    pub fn session_bytes(&self) -> &Arc<SessionBytes> {
        &self.session_bytes
    }

    /// Prepares for saved sessions that will be restored. To be called before the first announce.
    pub fn await_sessions(&self) {
        self.awaits.store(true, Ordering::Release);
        self.all.iter().for_each(|it| it.sessions().await_restoring());
    }

    /// Restores sessions of a key, if it is still valid.
    pub fn restore(&self, saved: &SavedKey<'_>, terms: &RestoreTimes) {
        let key = self.all.get(&saved.digest).map(|it| it.clone());
        if let Some(key) = key {
            key.sessions().restore(saved, terms, &key.limits);
            key.set_changed();
        }
    }

    /// Ends the restoring of sessions.
    pub fn end_restoring(&self) {
        if self.awaits.swap(false, Ordering::AcqRel) {
            self.all.iter().for_each(|it| it.sessions().end_restoring());
        }
    }
}

impl ValidKey {
    fn new(digest: Digest, record: &Record, awaits: bool, of_all: Arc<SessionBytes>) -> Self {
        Self {
            digest,
            name: record.name.clone(),
            limits: record.limits,
            issued_s: record.issued_s,
            changed: AtomicBool::new(false),
            sessions: Mutex::new(Sessions::new(record.totals, awaits, of_all)),
        }
    }

    /// The key's id: see [`id_of`].
    pub fn id(&self) -> String {
        id_of(&self.digest)
    }

    /// The holder's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The digest by which it is looked up.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The record to save.
    pub fn record(&self) -> Record {
        let totals = self.sessions().totals();
        Record { name: self.name.clone(), limits: self.limits, issued_s: self.issued_s, totals }
    }

    /// Whether the totals have changed since the previous call.
    pub fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    /// Marks the totals as not saved.
    pub fn set_changed(&self) {
        self.changed.store(true, Ordering::Release);
    }

    /// Counts an announce. Of a session that is new here, only bytes moved from now on count.
    ///
    /// # Errors
    /// [`Refusal::PasskeyLimit`]: more announces, torrents or peers than the key may have.
    pub fn count(&self, now: Now, report: &SessionReport<'_>) -> Result<(), Refusal> {
        let counted = self.sessions().count(now, report, &self.limits);
        counted.ok_or(Refusal::PasskeyLimit)?;
        self.set_changed();
        Ok(())
    }

    /// Removes peers that have been silent for `age_s_max` seconds.
    pub fn sweep(&self, now: Now, age_s_max: u32) {
        self.sessions().sweep(now, age_s_max);
    }

    /// Removes one of its peers.
    pub fn release(&self, info_hash: &InfoHash, peer_id: &PeerId) {
        self.sessions().leave(info_hash, peer_id);
    }

    /// Copies its sessions as of `at` into `sessions`, replacing its contents; returns their
    /// totals. `None` if there is nothing that is not saved elsewhere.
    pub fn save(&self, at: Now, sessions: &mut Vec<SavedSession>) -> Option<Totals> {
        let own = self.sessions();
        let has_any = !own.is_empty() || self.changed.load(Ordering::Acquire);
        has_any.then(|| own.save(at, sessions))
    }

    /// The current use.
    pub fn usage(&self) -> Usage {
        let (torrents, peers, left) = self.sessions().usage();
        Usage { torrents, peers, left }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now::from_s(1_800_000_000);
    const TORRENTS: [InfoHash; 3] = [InfoHash([1; 20]), InfoHash([2; 20]), InfoHash([3; 20])];
    const PEERS: [PeerId; 3] = [PeerId([1; 20]), PeerId([2; 20]), PeerId([3; 20])];

    fn record(limits: Limits) -> Record {
        Record { name: "ann".into(), limits, issued_s: 1, totals: Totals::default() }
    }

    fn key(limits: Limits) -> ValidKey {
        ValidKey::new([7; 32], &record(limits), false, Arc::default())
    }

    fn report(
        torrent: usize,
        peer: usize,
        event: Event,
        moved: (u64, u64),
    ) -> SessionReport<'static> {
        let (uploaded, downloaded) = moved;
        let (info_hash, peer_id) = (&TORRENTS[torrent], &PEERS[peer]);
        SessionReport { info_hash, peer_id, event, uploaded, downloaded, left: 5 }
    }

    #[test]
    fn only_issued_keys_are_valid_and_only_until_they_are_revoked() {
        let keys = PasskeyTable::default();
        let (digits, digest) = generate();
        assert!(digits.len() == 32 && keys.check(digits.as_bytes()).is_none());
        let key = keys.insert(digest, &record(Limits::default()));
        assert_eq!(keys.check(digits.as_bytes()).unwrap().id(), key.id());
        assert!(keys.check(digits.to_uppercase().as_bytes()).is_some());
        assert_eq!(keys.with_id(&key.id()).unwrap().digest(), &digest);
        assert_eq!(digest_of(&digits.to_uppercase()), Some(digest));
        assert_eq!((digest_of(&digits[1..]), id_of(&digest)), (None, key.id()));
        let bad = ["", &digits[1..], &format!("{digits}0"), &"g".repeat(32), &"0".repeat(32)];
        assert!(bad.iter().all(|it| keys.check(it.as_bytes()).is_none()));
        assert_ne!(generate().0, digits);
        keys.remove(&digest);
        assert!(keys.check(digits.as_bytes()).is_none() && keys.is_empty());
    }

    #[test]
    fn a_key_that_is_issued_while_restoring_ends_awaits_nothing() {
        let keys = PasskeyTable::default();
        keys.await_sessions();
        let early = keys.insert([1; 32], &record(Limits::default()));
        assert!(early.sessions().awaits_restoring());
        keys.end_restoring();
        let late = keys.insert_awaiting([2; 32], &record(Limits::default()), true);
        assert!(!early.sessions().awaits_restoring() && !late.sessions().awaits_restoring());
    }

    #[test]
    fn totals_are_sums_of_what_sessions_moved_here() {
        let key = key(Limits::default());
        let count = |torrent, peer, event, moved| {
            key.count(NOW, &report(torrent, peer, event, moved)).unwrap();
        };
        count(0, 0, Event::Started, (0, 0));
        count(0, 0, Event::None, (100, 10));
        count(0, 1, Event::None, (1000, 1000)); // joined elsewhere: these bytes were not moved here
        count(0, 1, Event::None, (1001, 1002));
        count(0, 0, Event::None, (50, 20)); // the client restarted
        count(0, 0, Event::Started, (70, 70));
        count(0, 0, Event::Stopped, (75, 71));
        let totals = key.record().totals;
        assert_eq!((totals.uploaded, totals.downloaded, totals.announces), (106, 23, 7));
        assert!(key.take_changed() && !key.take_changed());
        let usage = Usage { torrents: 1, peers: 1, left: 5 };
        assert_eq!(key.usage(), usage);
        key.sweep(NOW.plus_s(59), 60);
        assert_eq!(key.usage(), usage);
        key.sweep(NOW.plus_s(60), 60);
        assert_eq!(key.usage(), Usage::default());
    }

    #[test]
    fn limits_hold_exactly() {
        let limits = Limits { announces_per_minute: 9, torrents: 2, peers: 3 };
        let key = key(limits);
        let count =
            |torrent, peer, event| key.count(NOW, &report(torrent, peer, event, (0, 0))).is_ok();
        assert!(count(0, 0, Event::None) && count(1, 0, Event::None));
        assert!(!count(2, 0, Event::None), "a third torrent");
        assert!(count(0, 1, Event::None));
        assert!(!count(0, 2, Event::None), "a fourth peer");
        assert!(count(1, 0, Event::Stopped) && count(0, 2, Event::None));
        assert!((0..3).all(|_| count(0, 2, Event::None)), "nine announces, and a stop");
        assert!(!count(0, 2, Event::None), "the tenth");
        assert!(count(0, 2, Event::Stopped) && count(0, 1, Event::Stopped), "stops are free");
    }

    #[test]
    fn limits_that_are_not_given_follow_from_torrents() {
        let all = |torrents| {
            let Limits { announces_per_minute, peers, .. } = Limits::of(None, torrents, None);
            (announces_per_minute, peers)
        };
        assert_eq!(all(None), (5000, 10_000));
        assert_eq!([all(Some(1)), all(Some(20_000))], [(600, 10_000), (20_000, 40_000)]);
        assert_eq!(all(Some(u32::MAX)), (u32::MAX, PEERS_MAX));
        assert_eq!(Limits::of(Some(7), None, Some(3)).announces_per_minute, 7);
    }

    #[test]
    fn a_new_minute_brings_new_announces() {
        let key = key(Limits { announces_per_minute: 1, ..Limits::default() });
        let again = |now| key.count(now, &report(0, 0, Event::None, (0, 0)));
        assert_eq!((again(NOW), again(NOW)), (Ok(()), Err(Refusal::PasskeyLimit)));
        assert_eq!(again(NOW.plus_s(60)), Ok(()));
    }
}
