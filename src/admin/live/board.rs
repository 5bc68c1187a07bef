//! The latest figures: the process publishes a sample once a second, and all open pages read it.
//!
//! A ring holds one short row per second for the last five minutes, and `day` one per minute for
//! the last 24 hours, so memory is fixed: about 150 KiB. A sample is encoded once for all viewers,
//! and not at all without viewers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tungstenite::Utf8Bytes;

use super::day::{DayHistory, MINUTE_COLUMNS, MinuteRow, middle_s, minute_of};
use super::sample::{Cause, Protocol, Sample, float};
use super::tables;
use crate::frontend::drawing::{DayLine, client_bar};
use crate::types::{Action, PeerKind};

/// Seconds of history for a page that was just opened: about as long as it takes to notice a
/// problem, and few enough for a chart on a telephone.
pub const HISTORY_S: usize = 300;

/// Pages that may be open at once: all operators on duty, and a screen on the wall. Each costs the
/// thread that also scrapes and reloads some 10 KB a second.
pub const VIEWERS_MAX: usize = ALL_SEATS as usize;

/// [`VIEWERS_MAX`] in the semaphore's type.
const ALL_SEATS: u32 = 16;

/// The version that serves: a page of another version reloads.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The latest figures, the last minutes, and the viewers.
pub struct StatsHub {
    shown: Mutex<PublishedSamples>,
    beat: watch::Sender<ViewerTick>,
    seats: Arc<Semaphore>,
    refused: AtomicU64,
}

#[derive(Default)]
struct PublishedSamples {
    latest: Option<Arc<Sample>>,
    /// The rows of the last samples, oldest first.
    rows: VecDeque<[f64; COLUMNS.len()]>,
    /// The last 24 hours.
    day: DayHistory,
    /// Number of samples so far.
    samples: u64,
    /// The latest sample as a message, if there were viewers when it was published.
    message: Option<Utf8Bytes>,
}

impl PublishedSamples {
    /// The last minutes as a message.
    fn history(&self) -> Utf8Bytes {
        let message = json!({ "type": "history", "version": VERSION, "every_s": 1,
            "history_s": HISTORY_S, "columns": COLUMNS, "rows": self.rows });
        message.to_string().into()
    }

    /// Peers over the last 24 hours, up to now.
    fn day_line(&self) -> DayLine {
        let Some(latest) = &self.latest else { return DayLine::default() };
        let now = minute_of(latest.at_s);
        let known = self.day.rows().map(|row| (row.minute, row.peers()));
        DayLine::of(known.chain([(now, float(latest.store.peers()))]), now)
    }
}

/// The state that viewers wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ViewerTick {
    /// Number of samples so far.
    pub(super) samples: u64,
    /// Whether there will be no more samples.
    pub(super) is_over: bool,
}

impl Default for StatsHub {
    fn default() -> Self {
        Self {
            shown: Mutex::default(),
            beat: watch::Sender::default(),
            seats: Arc::new(Semaphore::new(VIEWERS_MAX)),
            refused: AtomicU64::new(0),
        }
    }
}

impl StatsHub {
    /// Publishes a sample of the current figures. To be called once a second.
    pub fn show(&self, sample: Sample) {
        let row = row_of(&sample);
        let message = (self.viewers() > 0).then(|| message_of(&row, &sample));
        let mut shown = self.shown();
        if shown.rows.len() == HISTORY_S {
            shown.rows.pop_front();
        }
        shown.rows.push_back(row);
        // The first sample has no rates yet: nothing was counted before it.
        if sample.span_s > 0.0 {
            shown.day.add(sample.at_s, &row);
        }
        shown.latest = Some(Arc::new(sample));
        shown.message = message;
        shown.samples += 1;
        let samples = shown.samples;
        drop(shown);
        self.beat.send_modify(|it| it.samples = samples);
    }

    /// The latest sample.
    pub fn latest(&self) -> Option<Arc<Sample>> {
        self.shown().latest.clone()
    }

    /// Number of open pages.
    pub fn viewers(&self) -> usize {
        VIEWERS_MAX - self.seats.available_permits()
    }

    /// Number of pages that were refused because too many were open.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Disconnects all viewers and accepts no new ones.
    pub fn close(&self) {
        self.beat.send_modify(|it| it.is_over = true);
    }

    /// Waits until all viewers are disconnected.
    pub async fn emptied(&self) {
        // Fails only on a closed semaphore; this one is never closed.
        let _ = self.seats.acquire_many(ALL_SEATS).await;
    }

    /// A seat for a viewer, occupied until it is dropped.
    pub(super) fn seat(&self) -> Result<OwnedSemaphorePermit, JoinError> {
        if self.beat.borrow().is_over {
            return Err(JoinError::Over);
        }
        self.seats.clone().try_acquire_owned().map_err(|_| {
            self.refused.fetch_add(1, Ordering::Relaxed);
            JoinError::Full
        })
    }

    /// A receiver of the state that viewers wait for.
    pub(super) fn beats(&self) -> watch::Receiver<ViewerTick> {
        self.beat.subscribe()
    }

    /// The message for a viewer that has seen `seen` samples, and the number it has seen after it:
    /// the latest sample if it lacks only that one, else the last minutes.
    pub(super) fn after(&self, seen: Option<u64>) -> (u64, Utf8Bytes) {
        let shown = self.shown();
        let lacks_one = seen.is_some_and(|it| it + 1 == shown.samples);
        let message = shown.message.clone().filter(|_| lacks_one);
        (shown.samples, message.unwrap_or_else(|| shown.history()))
    }

    /// The message with the minutes that a viewer has not seen: with all for `None`, else with
    /// those behind the number it has seen; and their number for the next call. `None` if there are
    /// none.
    pub(super) fn minutes_after(&self, seen: Option<u64>) -> Option<(u64, Utf8Bytes)> {
        let shown = self.shown();
        let (day, added) = (&shown.day, shown.day.added());
        if seen == Some(added) {
            return None;
        }
        let missing = added.saturating_sub(seen.unwrap_or_default());
        let missing = usize::try_from(missing).unwrap_or(usize::MAX);
        let columns: Vec<_> = ["at_s"].into_iter().chain(MINUTE_COLUMNS).collect();
        let row = |row: &MinuteRow| -> Vec<f64> {
            let values = row.values.iter().map(|value| short(f64::from(*value)));
            std::iter::once(middle_s(row.minute)).chain(values).collect()
        };
        let known = day.rows().skip(day.rows().len().saturating_sub(missing));
        let rows: Vec<_> = known.map(row).collect();
        let message = json!({ "type": "minutes", "every_s": 60, "columns": columns, "rows": rows,
            "day": shown.day_line() });
        Some((added, message.to_string().into()))
    }

    /// Peers over the last 24 hours as a line.
    pub fn day_line(&self) -> DayLine {
        self.shown().day_line()
    }

    /// A copy of the last 24 hours, to be kept.
    pub fn day(&self) -> DayHistory {
        self.shown().day.clone()
    }

    /// Puts what was kept by earlier runs before the minutes of this one.
    pub fn restore(&self, earlier: DayHistory) {
        self.shown().day.restore(earlier);
    }

    fn shown(&self) -> MutexGuard<'_, PublishedSamples> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a viewer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JoinError {
    /// The maximum number of pages is open already.
    Full,
    /// The process stops.
    Over,
}

/// The columns of a row, which charts can show.
pub(super) const COLUMNS: [&str; 23] = [
    "at_s",
    "span_s",
    "connects_per_s",
    "announces_per_s",
    "scrapes_per_s",
    "udp_per_s",
    "http_per_s",
    "ws_per_s",
    "errors_per_s",
    "queue_full_per_s",
    "limited_per_s",
    "shed_per_s",
    "bad_per_s",
    "peers_ipv4",
    "peers_ipv6",
    "peers_webrtc",
    "seeders",
    "leechers",
    "torrents",
    "store_bytes",
    "store_bytes_max",
    "resident_bytes",
    "busy_ratio",
];

/// The row of a sample.
fn row_of(sample: &Sample) -> [f64; COLUMNS.len()] {
    let action = |it| thousandths(sample.answered(it).per_s);
    let protocol = |protocol: Protocol| {
        let labels = [("transport", protocol.label())];
        thousandths(sample.sum("skep_responses_total", &labels).per_s)
    };
    let cause = |it| thousandths(sample.silenced(it).per_s);
    let store = &sample.store;
    let peers =
        |kind: PeerKind| float(store.seeders[kind as usize] + store.leechers[kind as usize]);
    let [connects, announces, scrapes] =
        [Action::Connect, Action::Announce, Action::Scrape].map(action);
    let [udp, http, ws] = Protocol::ALL.map(protocol);
    let [queue_full, limited, shed, bad] = Cause::ALL.map(cause);
    [
        thousandths(sample.at_s),
        sample.span_s,
        connects,
        announces,
        scrapes,
        udp,
        http,
        ws,
        thousandths(sample.errors().per_s),
        queue_full,
        limited,
        shed,
        bad,
        peers(PeerKind::V4),
        peers(PeerKind::V6),
        peers(PeerKind::Web),
        float(store.seeders.iter().sum()),
        float(store.leechers.iter().sum()),
        float(store.torrents),
        sample.value("skep_store_used_bytes"),
        sample.value("skep_store_limit_bytes"),
        sample.value("skep_memory_resident_bytes"),
        thousandths(sample.busiest_ratio()),
    ]
}

/// Rounds a number to thousandths: further digits are useless and cost bytes.
fn thousandths(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// Rounds a mean of a minute, of which a day has 20,000: to thousandths, or a large one to a whole
/// number.
fn short(mean: f64) -> f64 {
    if mean < 100.0 { thousandths(mean) } else { mean.round() }
}

/// A sample as a message.
fn message_of(row: &[f64; COLUMNS.len()], sample: &Sample) -> Utf8Bytes {
    let figures = tables::figures(sample);
    let tables = tables::tables(sample);
    let message = json!({ "type": "sample", "row": row, "head": tables::head(sample),
        "figures": figures, "tables": tables, "clients": client_bar(&sample.store.clients) });
    message.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Flow, MetricFlow};
    use super::*;

    fn column(name: &str) -> usize {
        COLUMNS.iter().position(|it| *it == name).unwrap()
    }

    fn sample(at_s: u32) -> Sample {
        Sample { at_s: at_s.into(), span_s: 1.0, ..Sample::default() }
    }

    #[test]
    fn the_ring_keeps_the_last_five_minutes_and_no_more() {
        let board = StatsHub::default();
        (0..400).for_each(|it| board.show(sample(it)));
        let (samples, history) = board.after(None);
        let history: serde_json::Value = serde_json::from_str(&history).unwrap();
        let rows = history["rows"].as_array().unwrap();
        assert_eq!((samples, rows.len()), (400, HISTORY_S));
        assert_eq!((&rows[0][0], &rows[HISTORY_S - 1][0]), (&json!(100.0), &json!(399.0)));
        assert_eq!(history["version"], VERSION);
        assert_eq!(history["columns"].as_array().unwrap().len(), rows[0].as_array().unwrap().len());
    }

    #[tokio::test]
    async fn who_lacks_one_sample_gets_it_and_who_lacks_more_gets_the_last_minutes() {
        let board = StatsHub::default();
        let is_history = |(seen, message): (u64, Utf8Bytes)| {
            (seen, message.starts_with(r#"{"columns""#) && message.contains(r#""history""#))
        };
        board.show(sample(1));
        assert_eq!(is_history(board.after(Some(0))), (1, true), "nobody looked when it came");
        let _seat = board.seat().unwrap();
        board.show(sample(2));
        assert_eq!(is_history(board.after(Some(1))), (2, false));
        assert_eq!(is_history(board.after(Some(0))), (2, true));
        assert_eq!(is_history(board.after(None)), (2, true));
        let row = serde_json::from_str::<serde_json::Value>(&board.after(Some(1)).1).unwrap();
        assert_eq!(row["row"][0], json!(2.0));
    }

    #[test]
    fn a_row_has_each_figure_in_its_column() {
        let metric =
            |name, labels, per_s| MetricFlow { name, labels, flow: Flow { total: 9.0, per_s } };
        let responses = |transport: &'static str, action: &'static str, per_s| {
            let labels = vec![("transport", transport.into()), ("action", action.into())];
            metric("skep_responses_total", labels, per_s)
        };
        let flows = vec![
            responses("udp", "connect", 1.0),
            responses("udp", "announce", 20.0),
            responses("http", "announce", 300.0),
            responses("ws", "scrape", 4000.0),
            metric("skep_udp_socket_drops_total", Vec::new(), 0.123_456),
            metric("skep_store_used_bytes", Vec::new(), 1.0),
        ];
        let row = row_of(&Sample { flows, ..sample(7) });
        for (name, expected) in [
            ("at_s", 7.0),
            ("connects_per_s", 1.0),
            ("announces_per_s", 320.0),
            ("scrapes_per_s", 4000.0),
            ("udp_per_s", 21.0),
            ("http_per_s", 300.0),
            ("ws_per_s", 4000.0),
            ("queue_full_per_s", 0.123),
            ("bad_per_s", 0.0),
            ("store_bytes", 9.0),
        ] {
            assert_eq!(row[column(name)], expected, "{name}");
        }
    }

    #[test]
    fn a_viewer_gets_the_day_once_and_then_the_minutes_that_it_lacks() {
        let board = StatsHub::default();
        assert_eq!(board.day_line(), DayLine::default());
        let minutes = |seen| {
            board.minutes_after(seen).map(|(seen, message)| {
                let message: serde_json::Value = serde_json::from_str(&message).unwrap();
                assert_eq!(
                    (&message["type"], &message["columns"][0]),
                    (&json!("minutes"), &json!("at_s"))
                );
                let rows = message["rows"].as_array().unwrap();
                let width = message["columns"].as_array().unwrap().len();
                assert!(rows.iter().all(|row| row.as_array().unwrap().len() == width));
                (seen, rows.iter().map(|row| row[0].as_f64().unwrap()).collect::<Vec<_>>())
            })
        };
        assert_eq!(minutes(None), Some((0, Vec::new())));
        assert_eq!(minutes(Some(0)), None);
        (0..200).for_each(|it| board.show(sample(it)));
        assert_eq!(minutes(None), Some((3, vec![30.0, 90.0, 150.0])));
        assert_eq!(minutes(Some(1)), Some((3, vec![90.0, 150.0])));
        let later = StatsHub::default();
        later.show(sample(3600));
        later.restore(DayHistory::decode(&board.day().encode()).unwrap());
        let kept = vec![30.0, 90.0, 150.0, 210.0];
        let found = later.minutes_after(None).unwrap();
        assert_eq!(found.0, 4);
        let message: serde_json::Value = serde_json::from_str(&found.1).unwrap();
        let rows = message["rows"].as_array().unwrap();
        assert_eq!(rows.iter().map(|row| row[0].as_f64().unwrap()).collect::<Vec<_>>(), kept);
        assert!(message["day"]["line"].as_str().unwrap().starts_with('M'));
    }

    #[tokio::test]
    async fn seats_are_counted_and_none_is_given_at_the_end() {
        let board = StatsHub::default();
        let mut seats: Vec<_> = (0..VIEWERS_MAX).map(|_| board.seat().unwrap()).collect();
        assert_eq!(board.seat().err(), Some(JoinError::Full));
        assert_eq!((board.viewers(), board.refused()), (VIEWERS_MAX, 1));
        seats.pop();
        drop(board.seat().unwrap());
        board.close();
        assert_eq!(board.seat().err(), Some(JoinError::Over));
        drop(seats);
        board.emptied().await;
        assert_eq!(board.viewers(), 0);
    }
}
