//! Snapshots while the tracker serves, its ends, and its returns.

use std::collections::BTreeSet;
use std::io::Cursor;

use skep::snapshot::{Header, Restore, Snapshot, TrackerId, VERSION, Writer};
use skep::store::{ExportBatch, StoreExport};
use skep::time::Now;
use skep::types::InfoHash;

use super::judge::{Invariant, Judged, Violation, hold};
use super::site::Site;
use super::swarms::{PEER_AGE_S_MAX, Swarms};
use super::{Happening, S, Sabotage, World};

const TRACKER: TrackerId = *b"sixteen bytes us";

/// A snapshot, and what is in it.
#[derive(Clone)]
pub(crate) struct Kept {
    bytes: Vec<u8>,
    at: Now,
    swarms: Swarms,
}

/// One in the making.
pub(crate) struct Saving {
    at: Now,
    export: StoreExport,
    writer: Writer<Vec<u8>>,
    swarms: Swarms,
    /// Torrents that were there all the time.
    stayed: BTreeSet<InfoHash>,
}

impl World {
    /// A save begins, unless the last one is still to be restored.
    pub(crate) fn begin_save(&mut self) -> Judged {
        self.plan_in_ms(240_000, Happening::Save);
        if self.is_up && self.is_restored {
            self.saving = Some(self.new_save()?);
            self.save_on()?;
        }
        Ok(())
    }

    fn new_save(&mut self) -> Judged<Saving> {
        self.compare_everything()?;
        let at = self.now();
        let (version, build) = (VERSION, "1.2.3".into());
        let header = Header { version, at_s: at.seconds(), tracker: TRACKER, build };
        let writer = Writer::new(Vec::new(), &header).unwrap();
        let all = self.swarms.torrents.iter().filter(|it| it.1.is_saved());
        let stayed = all.map(|it| *it.0).collect();
        Ok(Saving { at, export: StoreExport::new(at), writer, swarms: Swarms::default(), stayed })
    }

    /// The next slice of a save; others announce between two of them.
    pub(crate) fn save_on(&mut self) -> Judged {
        let Some(mut saving) = self.saving.take().filter(|_| self.is_up) else { return Ok(()) };
        if self.save_slice(&mut saving)? {
            self.saving = Some(saving);
            let delay_ms = self.random.u64(..20_000);
            self.plan_in_ms(delay_ms, Happening::SaveOn);
            return Ok(());
        }
        self.finish_save(saving)
    }

    fn save_slice(&mut self, saving: &mut Saving) -> Judged<bool> {
        self.compare_everything()?;
        let now = self.now();
        let torrents = &self.swarms.torrents;
        saving.stayed.retain(|it| torrents.get(it).is_some_and(|it| it.is_saved()));
        let mut batch = ExportBatch::default();
        let more = self.site.store.export(&mut saving.export, &mut batch);
        for torrent in &batch.torrents {
            let known = torrents.get(&torrent.info_hash).cloned().unwrap_or_default();
            let peers = known.port_peers();
            hold(peers == torrent.v4 + torrent.v6, Invariant::Snapshots, || {
                format!("{torrent:?} for {known:?}")
            })?;
            let known = known.saved(saving.at, now);
            let again = saving.swarms.torrents.insert(torrent.info_hash, known).is_some();
            hold(!again, Invariant::Snapshots, || format!("{torrent:?} twice"))?;
        }
        if more {
            saving.writer.add(&batch).unwrap();
        }
        Ok(more)
    }

    fn finish_save(&mut self, saving: Saving) -> Judged {
        let Saving { at, writer, mut swarms, stayed, .. } = saving;
        for torrent in stayed {
            let saved = swarms.torrents.contains_key(&torrent);
            hold(saved, Invariant::Snapshots, || format!("{torrent} is not saved"))?;
        }
        let completed = self.site.store.totals().completed;
        hold(completed == self.swarms.completed, Invariant::CountsAddUp, || {
            format!("{completed} for {}", self.swarms.completed)
        })?;
        swarms.completed = completed;
        let (bytes, _) = writer.finish(completed).unwrap();
        self.previous = self.latest.replace(Kept { bytes, at, swarms });
        self.tally.note("snapshots");
        Ok(())
    }

    /// The process ends: in order, or just so.
    pub(crate) fn end(&mut self, is_clean: bool) -> Judged {
        if !self.is_up {
            return Ok(());
        }
        self.judge_counts()?;
        if is_clean {
            if !self.is_restored {
                self.restore()?;
            }
            if self.random.bool() {
                let slots: Vec<u32> = self.site.sockets.keys().copied().collect();
                for slot in slots {
                    self.close_socket(slot)?;
                }
            }
            let mut saving = self.new_save()?;
            while self.save_slice(&mut saving)? {}
            self.finish_save(saving)?;
        }
        self.tally.note(if is_clean { "clean restarts" } else { "crashes" });
        (self.is_up, self.saving) = (false, None);
        self.site.sockets.clear();
        self.web_routes.clear();
        self.web_spoken.clear();
        let longest_s = if self.random.u8(..5) == 0 { 2500 } else { 8 };
        let down_ms = self.random.u64(..longest_s * 1000);
        self.plan_in_ms(down_ms, Happening::Begin(is_clean));
        Ok(())
    }

    /// A new process begins, with the keys of the one before, and the clock as it is now.
    pub(crate) fn begin(&mut self, was_clean: bool) -> Judged {
        let keys = match self.sabotage {
            Some(Sabotage::FreshKeys) => (self.keys.0.wrapping_add(99), None),
            _ => self.keys,
        };
        self.lives += 1;
        let now = Now::from_ns(self.mono_ns.wrapping_add_signed(self.ahead_ns));
        self.tally.add("forgotten", self.swarms.forgotten);
        self.site = Site::new(self.seed ^ self.lives << 32, keys, self.ahead_ns, now);
        (self.swarms, self.is_up, self.is_restored) = (Swarms::default(), true, false);
        self.tally.datagrams = [0; 2];
        if !was_clean && self.random.u8(..4) == 0 {
            self.judge_damage()?;
        }
        if self.random.bool() {
            return self.restore();
        }
        let delay_ms = self.random.u64(..30_000);
        self.plan_in_ms(delay_ms, Happening::Restore(self.lives));
        Ok(())
    }

    /// The latest snapshot is damaged: that is noticed, and the one before is used.
    fn judge_damage(&mut self) -> Judged {
        let Some(mut damaged) = self.latest.take() else { return Ok(()) };
        let at = self.random.usize(..damaged.bytes.len());
        if self.random.bool() {
            damaged.bytes[at] ^= 1 << self.random.u8(..8);
        } else {
            damaged.bytes.truncate(at);
        }
        let opened = Snapshot::open(Cursor::new(&damaged.bytes)).is_ok();
        hold(!opened, Invariant::Snapshots, || format!("damage at {at} goes unnoticed"))?;
        self.latest = self.previous.take();
        self.tally.note("damaged snapshots");
        Ok(())
    }

    /// Brings back what was saved last, into a store that has served for a while perhaps.
    pub(crate) fn restore(&mut self) -> Judged {
        self.is_restored = true;
        let Some(kept) = self.latest.clone() else { return Ok(()) };
        self.compare_everything()?;
        let now = self.now();
        let other = match self.sabotage {
            Some(Sabotage::OldSnapshot) => self.previous.as_ref(),
            _ => None,
        };
        let snapshot = match Snapshot::open(Cursor::new(&other.unwrap_or(&kept).bytes)) {
            Ok(snapshot) => snapshot,
            Err(fault) => {
                let what = format!("{fault:?}");
                return Err(Violation { invariant: Invariant::Snapshots, what });
            }
        };
        let mut restore = Restore::new(snapshot, PEER_AGE_S_MAX);
        while restore.step(&self.site.store, now).unwrap() {}
        let restored = *restore.restored();
        self.tally.add("peers restored", restored.peers);
        self.tally.add("peers merged", restored.known);
        self.tally.add("peers too old to restore", restored.expired);
        self.swarms.restore(&kept.swarms, kept.at, now);
        self.compare_everything()
    }

    /// Time in which the process does nothing: it was stopped, or its host slept.
    pub(crate) fn pause(&mut self) {
        self.mono_ns += self.random.u64(10..3000) * S;
        self.site.swept_since_s = self.now().seconds();
        self.tally.note("pauses");
    }
}
