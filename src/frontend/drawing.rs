//! What both statistics pages draw without a script, as the numbers of an SVG: peers over a day,
//! and clients as a bar. And the badge, a picture of its own.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use askama::Template;
use serde::Serialize;

use super::figures::{count, grouped, share};

/// Minutes of the line.
pub const DAY_MINUTES: u32 = 24 * 60;

/// Minutes that one point of the line stands for: a line of 288 points is finer than a screen
/// shows, and short enough to be in a page.
const POINT_MINUTES: u32 = 5;

/// Width of the drawing: one unit for each minute, so that x is a minute.
const WIDTH: u32 = DAY_MINUTES;

/// Height of the drawing.
const HEIGHT: f64 = 240.0;

/// Clients with a part of their own; the rest is one part. As many as there are colours.
const PARTS_MAX: usize = 5;

/// The width of the bar.
const BAR_WIDTH: u64 = 1000;

/// A number over the last 24 hours as a line: x from 0 to [`DAY_MINUTES`], y from 0 (the largest
/// value) to 240 (0). Empty if there is no value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DayLine {
    /// The `d` of the line's path.
    pub line: String,
    /// The `d` of the area below it.
    pub area: String,
    /// The largest value, as text.
    pub most: String,
}

impl DayLine {
    /// The line of values, each with its minute since the Unix epoch, in ascending order; `now` is
    /// the minute at the right end. A gap in the minutes is one in the line.
    pub fn of(values: impl Iterator<Item = (u32, f64)>, now: u32) -> Self {
        let begin = now.saturating_sub(DAY_MINUTES - 1);
        let mut points: Vec<(u32, f64, u32)> = Vec::new();
        for (minute, value) in values.filter(|it| (begin..=now).contains(&it.0)) {
            let place = minute / POINT_MINUTES;
            match points.last_mut().filter(|it| it.0 == place) {
                Some((_, sum, values)) => (*sum, *values) = (*sum + value, *values + 1),
                None => points.push((place, value, 1)),
            }
        }
        let mean = |(place, sum, values): (u32, f64, u32)| (place, sum / f64::from(values));
        let points: Vec<_> = points.into_iter().map(mean).collect();
        let most = points.iter().map(|it| it.1).fold(0.0, f64::max);
        if points.is_empty() {
            return Self::default();
        }
        let (mut line, mut area) = (String::new(), String::new());
        for run in points.chunk_by(|a, b| a.0 + 1 == b.0) {
            let place = |(place, value): (u32, f64)| {
                // The middle of its minutes; at the right end, where some are still to come: now.
                let minute =
                    (place * POINT_MINUTES).saturating_add(POINT_MINUTES / 2).clamp(begin, now);
                let y = if most > 0.0 { HEIGHT * (1.0 - value / most) } else { HEIGHT };
                (WIDTH - 1 - (now - minute), y)
            };
            let mut places: Vec<_> = run.iter().copied().map(place).collect();
            if let [(x, y)] = places[..] {
                places.insert(0, (x.saturating_sub(POINT_MINUTES), y)); // wide enough to be seen
            }
            let mut text = String::new();
            for (at, (x, y)) in places.iter().enumerate() {
                let step = if at == 0 { 'M' } else { 'L' };
                let _ = write!(text, "{step}{x} {y:.0}");
            }
            let [first, last] = [0, places.len() - 1].map(|at| places[at].0);
            let _ = write!(area, "{text}L{last} {HEIGHT}L{first} {HEIGHT}Z");
            line.push_str(&text);
        }
        Self { line, area, most: count(most) }
    }
}

/// A part of the bar of clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BarPart {
    /// The client.
    pub name: String,
    /// Its share of all clients that are known by their peer id, as text.
    pub share: String,
    /// Where it begins: 0 to 1000.
    pub x: u64,
    /// Its width: all parts together have 1000.
    pub width: u64,
    /// Its colour: 0 to 4; 5 for all others.
    pub color: usize,
}

/// The bar of clients (name, version, peers), each with all its versions: the most frequent first,
/// at most five and all others. Empty without clients.
pub fn client_bar(clients: &[(String, String, u64)]) -> Vec<BarPart> {
    let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, _, peers) in clients {
        *by_name.entry(name).or_default() += peers;
    }
    let all: u64 = by_name.values().sum();
    // What has no name is among all others, however much it is.
    let mut rest = by_name.remove("other").unwrap_or_default();
    let mut named: Vec<_> = by_name.into_iter().filter(|it| it.1 > 0).collect();
    named.sort_by_key(|(name, peers)| (Reverse(*peers), *name));
    rest += named.iter().skip(PARTS_MAX).map(|it| it.1).sum::<u64>();
    named.truncate(PARTS_MAX);
    let mut parts: Vec<_> =
        named.into_iter().enumerate().map(|(at, (name, peers))| (name, peers, at)).collect();
    parts.extend((rest > 0).then_some(("All others", rest, PARTS_MAX)));
    let mut before = 0;
    let part = |(name, peers, color): (&str, u64, usize)| {
        let edge = |peers: u64| peers * BAR_WIDTH / all.max(1);
        let x = edge(before);
        before += peers;
        BarPart { name: name.into(), share: share(peers, all), x, width: edge(before) - x, color }
    };
    parts.into_iter().map(part).collect()
}

/// The number of peers as a picture, for other pages: `/badge.svg`.
#[derive(Template)]
#[template(path = "frontend/badge.svg")]
struct Badge {
    text: String,
    /// Widths of the left part, the right part, and the text in it, in pixels.
    label: usize,
    value: usize,
    text_width: usize,
}

/// Seconds for which a badge may be kept: as the pages, a figure of some seconds ago.
pub const BADGE_AGE_S_MAX: u32 = 60;

/// The badge.
pub fn badge(peers: u64) -> String {
    /// Width of a digit of the font, and room on both sides of a text.
    const DIGIT: usize = 7;
    const ROOM: usize = 14;
    let text = grouped(peers);
    let text_width = text.len() * DIGIT;
    let badge = Badge { label: 5 * DIGIT + ROOM, value: text_width + ROOM, text_width, text };
    badge.render().unwrap_or_default() // does not fail: all values are strings and numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_a_line_of_means_with_its_gaps() {
        let now = 10_000 * POINT_MINUTES + 4;
        let line = |values: &[(u32, f64)]| DayLine::of(values.iter().copied(), now);
        let day = line(&[(now - 9, 100.0), (now - 8, 300.0), (now - 4, 400.0), (now, 400.0)]);
        assert_eq!(day.line, "M1432 120L1437 0");
        assert_eq!(day.area, "M1432 120L1437 0L1437 240L1432 240Z");
        assert_eq!(day.most, "400");
        let gap = line(&[(now - 60, 5.0), (now - 20, 5.0), (now - 15, 0.0)]);
        assert_eq!(gap.line, "M1372 0L1377 0M1417 0L1422 240", "two lines");
        assert_eq!(line(&[(now - DAY_MINUTES, 9.0), (now + 1, 9.0)]), DayLine::default());
        assert_eq!(line(&[(now, 0.0)]).line, "M1432 240L1437 240");
    }

    #[test]
    fn a_day_stays_within_the_drawing_and_is_short() {
        for now in [0, 7, DAY_MINUTES, 29_000_000, u32::MAX] {
            let values = (now.saturating_sub(2000)..=now).map(|it| (it, f64::from(it % 999)));
            let day = DayLine::of(values, now);
            assert!(day.line.len() < 5000, "{}", day.line.len());
            let numbers = day.area.split(|it: char| !it.is_ascii_digit());
            let numbers: Vec<u32> = numbers.filter_map(|it| it.parse().ok()).collect();
            for place in numbers.chunks(2) {
                assert!(place[0] < WIDTH && f64::from(place[1]) <= HEIGHT, "{now}: {place:?}");
            }
        }
    }

    #[test]
    fn the_bar_has_each_client_once_and_is_full() {
        let client = |name: &str, version: &str, peers| (name.into(), version.into(), peers);
        let clients = [
            client("qBittorrent", "5.0", 40),
            client("Transmission", "4.0", 30),
            client("qBittorrent", "4.6", 20),
            client("other", "other", 10),
        ];
        let parts = client_bar(&clients);
        let found: Vec<_> =
            parts.iter().map(|it| (&*it.name, &*it.share, it.x, it.width, it.color)).collect();
        assert_eq!(
            found,
            [
                ("qBittorrent", "60.0 %", 0, 600, 0),
                ("Transmission", "30.0 %", 600, 300, 1),
                ("All others", "10.0 %", 900, 100, 5),
            ]
        );
        let many: Vec<_> = (0..50).map(|it| client(&format!("c{it}"), "1", 7)).collect();
        let parts = client_bar(&many);
        assert_eq!((parts.len(), parts.iter().map(|it| it.width).sum()), (6, 1000));
        assert_eq!(client_bar(&[]), []);
        assert_eq!(client_bar(&[client("a", "1", 0)]), []);
    }

    #[test]
    fn a_badge_is_short_and_has_the_number() {
        for peers in [0, 61_429, u64::MAX] {
            let badge = badge(peers);
            assert!(badge.len() < 2000, "{}", badge.len());
            assert!(badge.starts_with("<svg ") && badge.trim_end().ends_with("</svg>"));
            assert!(badge.contains(&format!(">{}</text>", grouped(peers))), "{badge}");
        }
        assert!(badge(61_429).contains("aria-label=\"peers: 61,429\""));
    }
}
