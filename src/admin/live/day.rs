//! The last 24 hours, a row for each minute: the mean of each figure over the minute's samples.
//!
//! The rows are kept across restarts in a file of this form, all numbers little-endian:
//!
//! ```text
//! "skep day"  version u32  columns u32  rows u32
//! each row:   minute u32, columns × f32          ascending minutes since the Unix epoch
//! CRC-32C u32 of everything before it
//! ```
//!
//! It is bounded: 86 KB. Reading and writing the file is the process's work, not this module's.

use std::collections::VecDeque;

use super::board::COLUMNS;
use super::sample::float;
use crate::frontend::drawing::DAY_MINUTES;

/// Rows of a day.
const ROWS_MAX: usize = DAY_MINUTES as usize;

/// The columns of a minute, which are columns of a second too: what charts show.
pub(super) const MINUTE_COLUMNS: [&str; 14] = [
    "announces_per_s",
    "scrapes_per_s",
    "connects_per_s",
    "errors_per_s",
    "queue_full_per_s",
    "limited_per_s",
    "shed_per_s",
    "bad_per_s",
    "seeders",
    "leechers",
    "torrents",
    "store_bytes",
    "resident_bytes",
    "busy_ratio",
];

/// The first bytes of a file.
const MAGIC: [u8; 8] = *b"skep day";

/// The version of the form, columns included: a file of another version is not read.
const VERSION: u32 = 1;

/// Bytes before the rows.
const HEAD_BYTES: usize = MAGIC.len() + 3 * 4;

/// Bytes of a row.
const ROW_BYTES: usize = 4 + 4 * MINUTE_COLUMNS.len();

/// Bytes of the checksum.
const SUM_BYTES: usize = 4;

/// The most bytes of a file.
pub const DAY_BYTES_MAX: usize = HEAD_BYTES + ROWS_MAX * ROW_BYTES + SUM_BYTES;

/// The means of one minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct MinuteRow {
    /// Minutes since the Unix epoch.
    pub(super) minute: u32,
    /// In the order of [`MINUTE_COLUMNS`].
    pub(super) values: [f32; MINUTE_COLUMNS.len()],
}

impl MinuteRow {
    /// A value by the name of its column.
    pub(super) fn value(&self, column: &str) -> f64 {
        let at = MINUTE_COLUMNS.iter().position(|name| *name == column);
        at.and_then(|at| self.values.get(at)).map_or(0.0, |value| f64::from(*value))
    }

    /// All peers.
    pub(super) fn peers(&self) -> f64 {
        self.value("seeders") + self.value("leechers")
    }
}

/// Why a file of the history cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DayFileError {
    /// It begins with something else.
    #[error("not a history of statistics")]
    Foreign,
    /// Another version of skep has written it.
    #[error("a history of version {0}; this skep reads version {VERSION}")]
    OtherVersion(u32),
    /// Its length or checksum is wrong, or a number in it is impossible.
    #[error("the file is damaged")]
    Damaged,
}

/// The rows of the last 24 hours, and the minute that is not over yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DayHistory {
    /// Oldest first, in ascending minutes.
    rows: VecDeque<MinuteRow>,
    current: Option<CurrentMinute>,
    /// Number of rows that were ever added, also of those that were dropped since.
    added: u64,
}

/// The sums of a minute that is not over.
#[derive(Clone, Copy, Debug, PartialEq)]
struct CurrentMinute {
    minute: u32,
    samples: u32,
    sums: [f64; MINUTE_COLUMNS.len()],
}

impl CurrentMinute {
    fn row(&self) -> MinuteRow {
        #[expect(clippy::cast_possible_truncation, reason = "seven digits are enough for a chart")]
        let values = self.sums.map(|sum| (sum / f64::from(self.samples)) as f32);
        MinuteRow { minute: self.minute, values }
    }
}

impl DayHistory {
    /// Adds the row of a second, taken at `at_s` seconds since the Unix epoch.
    pub(super) fn add(&mut self, at_s: f64, second: &[f64; COLUMNS.len()]) {
        let minute = minute_of(at_s);
        let over = self.current.filter(|current| current.minute != minute);
        if let Some(over) = over {
            self.push(over.row());
            self.current = None;
        }
        let empty = CurrentMinute { minute, samples: 0, sums: [0.0; MINUTE_COLUMNS.len()] };
        let current = self.current.get_or_insert(empty);
        current.samples += 1;
        for (sum, name) in current.sums.iter_mut().zip(MINUTE_COLUMNS) {
            let at = COLUMNS.iter().position(|column| *column == name);
            *sum += at.and_then(|at| second.get(at)).copied().unwrap_or_default();
        }
    }

    /// Adds a row, which replaces those that are not older.
    fn push(&mut self, row: MinuteRow) {
        while self.rows.back().is_some_and(|last| last.minute >= row.minute) {
            self.rows.pop_back();
        }
        if self.rows.len() == ROWS_MAX {
            self.rows.pop_front();
        }
        self.rows.push_back(row);
        self.added += 1;
    }

    /// Puts rows of earlier runs before those of this one.
    pub(super) fn restore(&mut self, earlier: Self) {
        let own = std::mem::take(&mut self.rows);
        // The clock may have been set back between the runs: what is later than now is left out.
        let begun = own.front().map(|row| row.minute);
        let begun = begun.or_else(|| self.current.map(|current| current.minute));
        let is_earlier = |row: &MinuteRow| begun.is_none_or(|begun| row.minute <= begun);
        earlier.rows.into_iter().filter(is_earlier).chain(own).for_each(|row| self.push(row));
    }

    /// The rows, oldest first.
    pub(super) fn rows(&self) -> impl DoubleEndedIterator<Item = &MinuteRow> + ExactSizeIterator {
        self.rows.iter()
    }

    /// Number of rows that were ever added.
    pub(super) fn added(&self) -> u64 {
        self.added
    }

    /// The file of the rows; the minute that is not over is in it with what there is.
    pub fn encode(&self) -> Vec<u8> {
        let mut whole = self.clone();
        if let Some(current) = whole.current.take() {
            whole.push(current.row());
        }
        let rows = u32::try_from(whole.rows.len()).unwrap_or_default();
        let columns = u32::try_from(MINUTE_COLUMNS.len()).unwrap_or_default();
        let mut bytes = Vec::with_capacity(DAY_BYTES_MAX);
        bytes.extend(MAGIC);
        [VERSION, columns, rows].iter().for_each(|it| bytes.extend(it.to_le_bytes()));
        for row in &whole.rows {
            bytes.extend(row.minute.to_le_bytes());
            row.values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        }
        let sum = crc32c::crc32c(&bytes);
        bytes.extend(sum.to_le_bytes());
        bytes
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`DayFileError`] if it is not one, of another version, or damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self, DayFileError> {
        let rest = bytes.strip_prefix(&MAGIC).ok_or(DayFileError::Foreign)?;
        let (version, rest) = number(rest).ok_or(DayFileError::Damaged)?;
        if version != VERSION {
            return Err(DayFileError::OtherVersion(version));
        }
        let (body, sum) = bytes.split_last_chunk().ok_or(DayFileError::Damaged)?;
        if u32::from_le_bytes(*sum) != crc32c::crc32c(body) {
            return Err(DayFileError::Damaged);
        }
        let rows = rows_of(rest).ok_or(DayFileError::Damaged)?;
        Ok(Self { added: rows.len() as u64, rows, current: None })
    }
}

/// The rows of a file, behind its version.
fn rows_of(bytes: &[u8]) -> Option<VecDeque<MinuteRow>> {
    let (columns, bytes) = number(bytes)?;
    let (count, bytes) = number(bytes)?;
    let count = usize::try_from(count).ok().filter(|count| *count <= ROWS_MAX)?;
    let is_whole = usize::try_from(columns) == Ok(MINUTE_COLUMNS.len())
        && bytes.len() == count * ROW_BYTES + SUM_BYTES;
    let bytes = bytes.get(..count * ROW_BYTES).filter(|_| is_whole)?;
    let mut rows = VecDeque::with_capacity(count);
    for row in bytes.chunks_exact(ROW_BYTES) {
        let (minute, mut rest) = number(row)?;
        let mut values = [0.0; MINUTE_COLUMNS.len()];
        for value in &mut values {
            let bits;
            (bits, rest) = number(rest)?;
            *value = f32::from_bits(bits);
        }
        let is_later = rows.back().is_none_or(|last: &MinuteRow| last.minute < minute);
        if !is_later || values.iter().any(|value| !value.is_finite() || *value < 0.0) {
            return None;
        }
        rows.push_back(MinuteRow { minute, values });
    }
    Some(rows)
}

/// The number at the beginning, and what follows it.
fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*number), rest))
}

/// The minute of a time in seconds since the Unix epoch.
pub(super) fn minute_of(at_s: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a cast of a float ends at the bounds of the type"
    )]
    let minute = (at_s / 60.0) as u32;
    minute
}

/// The middle of a minute, in seconds since the Unix epoch.
pub(super) fn middle_s(minute: u32) -> f64 {
    float(u64::from(minute) * 60 + 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row of a second with this many seeders.
    fn second(seeders: f64) -> [f64; COLUMNS.len()] {
        let mut row = [0.0; COLUMNS.len()];
        row[COLUMNS.iter().position(|name| *name == "seeders").unwrap()] = seeders;
        row
    }

    /// A history of this many minutes from `begin` on, each with its number as seeders.
    fn minutes(begin: u32, count: u32) -> DayHistory {
        let mut day = DayHistory::default();
        for minute in begin..=begin + count {
            day.add(f64::from(minute) * 60.0, &second(f64::from(minute - begin)));
        }
        day.current = None;
        day
    }

    fn seeders(day: &DayHistory) -> Vec<(u32, f64)> {
        day.rows().map(|row| (row.minute, row.value("seeders"))).collect()
    }

    #[test]
    fn a_minute_is_the_mean_of_its_seconds() {
        let mut day = DayHistory::default();
        for (at_s, value) in [(59.5, 7.0), (60.0, 10.0), (61.0, 20.0), (119.9, 60.0)] {
            day.add(at_s, &second(value));
        }
        assert_eq!(seeders(&day), [(0, 7.0)], "minute 1 is not over");
        day.add(120.0, &second(1.0));
        assert_eq!(seeders(&day), [(0, 7.0), (1, 30.0)]);
        assert_eq!(day.added(), 2);
    }

    #[test]
    fn a_day_is_kept_and_no_more() {
        let day = minutes(100, 2000);
        assert_eq!(day.rows().len(), ROWS_MAX);
        assert_eq!(seeders(&day).last(), Some(&(2099, 1999.0)));
        assert_eq!(day.encode().len(), DAY_BYTES_MAX);
        assert_eq!(day.added(), 2000);
    }

    #[test]
    fn every_column_is_one_of_a_second() {
        assert!(MINUTE_COLUMNS.iter().all(|name| COLUMNS.contains(name)));
    }

    #[test]
    fn a_file_gives_back_what_was_put_in_with_the_minute_that_was_not_over() {
        let mut day = minutes(50, 3);
        day.add(60.0 * 53.0, &second(5.0));
        day.add(60.0 * 53.0 + 1.0, &second(6.0));
        let read = DayHistory::decode(&day.encode()).unwrap();
        assert_eq!(seeders(&read), [(50, 0.0), (51, 1.0), (52, 2.0), (53, 5.5)]);
        assert_eq!(DayHistory::decode(&DayHistory::default().encode()).unwrap().rows().len(), 0);
    }

    #[test]
    fn any_other_byte_and_any_other_length_is_found() {
        let file = minutes(50, 3).encode();
        for at in 0..file.len() {
            let mut other = file.clone();
            other[at] ^= 0x10;
            let expected = match at {
                0..8 => DayFileError::Foreign,
                8..12 => DayFileError::OtherVersion(u32::from_le_bytes(
                    *other[8..].first_chunk().unwrap(),
                )),
                _ => DayFileError::Damaged,
            };
            assert_eq!(DayHistory::decode(&other), Err(expected), "byte {at}");
            assert!(DayHistory::decode(&file[..at]).is_err(), "{at} bytes");
        }
        assert_eq!(DayHistory::decode(&[&file[..], b"x"].concat()), Err(DayFileError::Damaged));
    }

    #[test]
    fn a_file_with_a_right_checksum_and_impossible_contents_is_refused() {
        let valid = minutes(50, 3);
        for damage in [
            |day: &mut DayHistory| day.rows[1].values[3] = f32::NAN,
            |day: &mut DayHistory| day.rows[1].values[3] = f32::INFINITY,
            |day: &mut DayHistory| day.rows[1].values[3] = -1.0,
            |day: &mut DayHistory| day.rows[1].minute = 50,
        ] {
            let mut day = valid.clone();
            damage(&mut day);
            assert_eq!(DayHistory::decode(&day.encode()), Err(DayFileError::Damaged));
        }
    }

    #[test]
    fn an_earlier_run_comes_first_and_what_lies_in_the_future_is_left_out() {
        let mut day = DayHistory::default();
        day.add(60.0 * 52.0, &second(9.0));
        let mut begun = day.clone();
        begun.restore(minutes(50, 6));
        assert_eq!(seeders(&begun), [(50, 0.0), (51, 1.0), (52, 2.0)]);
        begun.add(60.0 * 53.0, &second(1.0));
        let restarted = [(50, 0.0), (51, 1.0), (52, 9.0)];
        assert_eq!(seeders(&begun), restarted, "the minute of the restart");
        day.add(60.0 * 53.0, &second(1.0));
        day.restore(minutes(50, 6));
        assert_eq!(seeders(&day), restarted, "restored when a row was there already");
    }
}
