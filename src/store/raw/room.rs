//! Who gives way in a shard whose newcomer cannot be stored for want of a bucket or of bytes.

use std::sync::atomic::Ordering;

use hashbrown::raw::RawTable;

use super::table::{Entry, Spot, Table, buckets_capacity, entry_at, remove_at};
use crate::store::keeper::Keeper;

/// Buckets that are looked at for those who may give way: some microseconds under the lock, where
/// many of them lead to a block elsewhere.
const LOOKS_FOR_ROOM: usize = 64;

/// How often they are looked for at most for one newcomer, where they are without peers.
const LOOKS_FOR_EMPTY_MAX: usize = 8;

/// A table of fewer buckets is not halved for bytes: there is next to nothing to be had of it.
const HALVED_MIN: usize = 16;

/// A table is renewed for one bucket in so many: some hundred nanoseconds for each.
const RENEWED_FOR: usize = 64;

/// How many give way at most for one. One would do, but for buckets which, left amid full ones, can
/// be used again only by who happens to come by.
const GONE_MAX: usize = 4;

impl Table {
    /// Lets others than the one at `spot` go. While there are torrents without peers whose going
    /// helps, no other goes.
    #[cold]
    pub(super) fn make_room(
        &self,
        table: &mut RawTable<Entry>,
        spot: &Spot<'_>,
        keeper: &mut impl Keeper,
    ) {
        let has_room = match keeper.lacks_bucket() {
            true => self.empty_a_bucket(table, spot, keeper),
            false => self.halve(table, spot, keeper),
        };
        if has_room {
            return;
        }
        self.evict(table, spot, false, keeper);
        if table.len() == table.capacity() {
            self.renew(table, spot.shard);
        }
    }

    /// Lets torrents without peers go, from where the shard's hand was left: the oldest of those
    /// that are looked at, and as many as it takes for a bucket that anybody can use. Says whether
    /// there is one.
    fn empty_a_bucket(
        &self,
        table: &mut RawTable<Entry>,
        spot: &Spot<'_>,
        keeper: &mut impl Keeper,
    ) -> bool {
        let is_full = |table: &RawTable<Entry>| table.len() == table.capacity();
        for _ in 0..LOOKS_FOR_EMPTY_MAX {
            if keeper.empties(spot.shard) == 0 || !self.evict(table, spot, true, keeper) {
                return false;
            }
            if is_full(table) {
                self.renew(table, spot.shard);
            }
            if !is_full(table) {
                return true;
            }
        }
        false
    }

    /// Halves the table, if its torrents with peers leave enough of the half: a torrent without
    /// peers takes a bucket only, so bytes come of many at once. The oldest go, until a quarter of
    /// the half is free. One look at each bucket, and one move of those that stay: no more than the
    /// growth cost that is undone, and as rarely.
    fn halve(
        &self,
        table: &mut RawTable<Entry>,
        spot: &Spot<'_>,
        keeper: &mut impl Keeper,
    ) -> bool {
        let half = buckets_capacity(table.buckets() / 2);
        let (kept_max, empties) = (half / 4 * 3, keeper.empties(spot.shard));
        if empties == 0
            || table.buckets() < HALVED_MIN
            || table.len().saturating_sub(empties) > kept_max
        {
            return false;
        }
        let since_of =
            |entry: &Entry| entry.1.get().empty_since_s().filter(|_| entry.0 != *spot.info_hash);
        let mut found: Vec<(u32, usize)> = (0..table.buckets())
            .filter_map(|at| Some((since_of(entry_at(table, at)?)?, at)))
            .collect();
        let gone = table.len().saturating_sub(kept_max).min(found.len());
        if gone > 0 {
            found.select_nth_unstable(gone - 1);
        }
        for &(_, at) in &found[..gone] {
            Self::let_go(table, at, spot.shard, keeper);
        }
        self.shrink(table, spot.shard, half, |before, after| {
            keeper.resized(spot.shard, before, after);
        });
        true
    }

    /// One look for those that may give way: lets those without peers go, until there is room, or
    /// some of those on probation. Says whether there were any.
    fn evict(
        &self,
        table: &mut RawTable<Entry>,
        spot: &Spot<'_>,
        empty: bool,
        keeper: &mut impl Keeper,
    ) -> bool {
        let hand = &self.hints[spot.shard].hand;
        let mut at = hand.load(Ordering::Relaxed);
        let mut found = [(0, 0); LOOKS_FOR_ROOM];
        let mut count = 0;
        for _ in 0..LOOKS_FOR_ROOM.min(table.buckets()) {
            at = (at + 1) & (table.buckets() - 1);
            let Some(entry) = entry_at(table, at) else { continue };
            let cell = entry.1.get();
            // Of those without peers by the tag alone: nothing elsewhere is looked at.
            let order = match cell.empty_since_s() {
                Some(since_s) => empty.then_some(since_s),
                None => (!empty && keeper.may_go(cell)).then_some(0),
            };
            if let Some(order) = order.filter(|_| entry.0 != *spot.info_hash) {
                found[count] = (order, at);
                count += 1;
            }
        }
        hand.store(at, Ordering::Relaxed);
        let found = &mut found[..count];
        found.sort_unstable();
        let gone_max = if empty { LOOKS_FOR_ROOM } else { GONE_MAX };
        for &(_, at) in found.iter().take(gone_max) {
            if empty && table.len() < table.capacity() {
                break;
            }
            Self::let_go(table, at, spot.shard, keeper);
        }
        count > 0
    }

    fn let_go(table: &mut RawTable<Entry>, at: usize, shard: usize, keeper: &mut impl Keeper) {
        if let Some((_, mut cell)) = remove_at(table, at) {
            keeper.goes(shard, cell.get_mut());
        }
    }

    /// Moves all entries into a table of the same size, if that brings enough buckets: one that is
    /// left amid full ones can be used again only by who happens to come by, until this is done.
    fn renew(&self, table: &mut RawTable<Entry>, shard: usize) {
        let room = buckets_capacity(table.buckets()) - table.len();
        if room < table.buckets() / RENEWED_FOR {
            return;
        }
        let buckets = table.buckets();
        let mut renewed = RawTable::with_capacity(buckets_capacity(buckets));
        for entry in table.drain() {
            renewed.insert(self.hash(&entry.0), entry, |entry| self.hash(&entry.0));
        }
        debug_assert_eq!(renewed.buckets(), buckets);
        *table = renewed;
        self.hints[shard].note(table);
        self.hints[shard].moves.fetch_add(1, Ordering::Relaxed);
    }
}
