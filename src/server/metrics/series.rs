//! The type of a series, the macro that declares a table of them, and the values read from it.

use std::borrow::Cow;

use super::sources::MetricInputs;
use super::table;

/// The definition of one metric.
pub(crate) struct Series {
    /// Its heading on the page of documentation.
    pub(super) topic: &'static str,
    /// Its name, which ends in its unit.
    pub(super) name: &'static str,
    /// Lines of [`Series::help`].
    pub(super) help: &'static str,
    /// Names of its labels.
    pub(super) labels: &'static [&'static str],
    /// How it is read, which defines its type.
    pub(super) read: SeriesReader,
}

/// How a metric is read.
pub(super) enum SeriesReader {
    /// A count that only grows.
    Counter(fn(&MetricInputs, &mut SeriesWriter<'_>)),
    /// A number that rises and falls.
    Gauge(fn(&MetricInputs, &mut SeriesWriter<'_>)),
    /// A histogram of durations.
    Histogram(fn(&MetricInputs) -> Durations),
}

/// Durations in buckets.
#[derive(Debug)]
pub(crate) struct Durations {
    /// Bounds in seconds, each with the number of shorter durations.
    pub(super) below: Vec<(f64, u64)>,
    /// Number of durations.
    pub(super) count: u64,
    /// Sum of all durations, in seconds.
    pub(super) sum_s: f64,
}

/// A value. Counts are exact, whatever their size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Number {
    Whole(u64),
    Real(f64),
}

impl Series {
    /// What the metric counts or measures, as Markdown.
    pub(super) fn help(&self) -> &'static str {
        self.help.trim_ascii()
    }

    /// Prometheus's name of its type.
    pub(super) fn kind(&self) -> &'static str {
        match self.read {
            SeriesReader::Counter(_) => "counter",
            SeriesReader::Gauge(_) => "gauge",
            SeriesReader::Histogram(_) => "histogram",
        }
    }

    /// Its unit, from the end of its name; `None` if it counts things.
    pub(super) fn unit(&self) -> Option<&'static str> {
        let name = self.name.trim_end_matches("_total");
        UNITS.into_iter().find(|unit| name.ends_with(unit))
    }
}

/// The units that names end in.
const UNITS: [&str; 3] = ["bytes", "seconds", "ratio"];

impl Number {
    pub(crate) fn whole(self) -> u64 {
        match self {
            Self::Whole(count) => count,
            Self::Real(_) => 0,
        }
    }

    pub(crate) fn real(self) -> f64 {
        match self {
            Self::Whole(count) => float(count),
            Self::Real(number) => number,
        }
    }
}

impl From<u64> for Number {
    fn from(count: u64) -> Self {
        Self::Whole(count)
    }
}

impl From<usize> for Number {
    fn from(count: usize) -> Self {
        Self::Whole(u64::try_from(count).unwrap_or(u64::MAX))
    }
}

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

/// One value of a series.
pub(crate) struct SeriesValue {
    pub(crate) series: &'static Series,
    /// The labels' values, in the order of their names.
    labels: Vec<Cow<'static, str>>,
    pub(crate) number: Number,
}

impl SeriesValue {
    /// Names and values of the labels.
    pub(crate) fn labels(&self) -> impl Iterator<Item = (&'static str, Cow<'static, str>)> {
        self.series.labels.iter().copied().zip(self.labels.iter().cloned())
    }

    /// Whether it belongs to this metric and has these labels, possibly among others.
    fn is_of(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        let has =
            |wanted: &(&str, &str)| self.labels().any(|own| own.0 == wanted.0 && own.1 == wanted.1);
        self.series.name == name && labels.iter().all(has)
    }
}

/// The values of all series at one moment, in the order of the table.
#[derive(Default)]
pub(crate) struct Reading {
    pub(crate) values: Vec<SeriesValue>,
    pub(super) durations: Vec<(&'static Series, Durations)>,
}

impl Reading {
    /// Reads a table.
    pub(super) fn of(table: &'static [Series], sources: &MetricInputs) -> Self {
        let mut reading = Self::default();
        for series in table {
            match series.read {
                SeriesReader::Counter(read) | SeriesReader::Gauge(read) => {
                    read(sources, &mut SeriesWriter { series, all: &mut reading.values });
                }
                SeriesReader::Histogram(read) => reading.durations.push((series, read(sources))),
            }
        }
        reading
    }

    /// The sum of a metric's values that have these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        sum(&self.values, name, labels)
    }
}

fn sum(values: &[SeriesValue], name: &str, labels: &[(&str, &str)]) -> u64 {
    debug_assert!(table::has(name, labels.iter().map(|label| label.0)), "{name}{labels:?}");
    let found = values.iter().filter(|value| value.is_of(name, labels));
    found.map(|value| value.number.whole()).sum()
}

/// Receives the values of a series.
pub(super) struct SeriesWriter<'a> {
    series: &'static Series,
    all: &'a mut Vec<SeriesValue>,
}

impl SeriesWriter<'_> {
    /// Adds the value with these labels.
    pub(super) fn put<const LABELS: usize>(
        &mut self,
        labels: [impl Into<Cow<'static, str>>; LABELS],
        number: impl Into<Number>,
    ) {
        debug_assert_eq!(LABELS, self.series.labels.len(), "{}", self.series.name);
        let labels = labels.map(Into::into).into();
        self.all.push(SeriesValue { series: self.series, labels, number: number.into() });
    }

    /// The sum of an earlier metric in the same reading. Both therefore agree, although the workers
    /// continue to count.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        sum(self.all, name, labels)
    }
}

/// Declares a table of series. Each has its help, its type, its name with its labels, and how it is
/// read: a function from [`MetricInputs`] to the value. A label `in` a closed list has one value
/// per item, which the function receives. If labels have no list, the function adds the values
/// itself.
macro_rules! series {
    ($(
        $topic:literal {
            $(
                $(#[doc = $help:literal])+
                $type:ident $name:ident $({ $($labels:tt)+ })? = $read:expr;
            )+
        }
    )+) => {
        /// Every series, in the order in which they are read and documented.
        pub(super) static SERIES: &[Series] = &[ $( $(
            Series {
                topic: $topic,
                name: stringify!($name),
                help: concat!($($help),+),
                labels: labels!([$($($labels)+)?]),
                read: read!($type [$($($labels)+)?] $read),
            },
        )+ )+ ];
    };
}

/// The names of labels.
macro_rules! labels {
    ([$($label:ident $(in $list:ident)?),*]) => { &[$(stringify!($label)),*] };
}

/// A function that adds all values of a series.
macro_rules! read {
    (counter $labels:tt $read:expr) => { SeriesReader::Counter(read!($labels $read)) };
    (gauge $labels:tt $read:expr) => { SeriesReader::Gauge(read!($labels $read)) };
    (histogram [] $read:expr) => { SeriesReader::Histogram($read) };
    ([] $read:expr) => {
        |from, to| {
            let read: fn(&MetricInputs) -> _ = $read;
            to.put([""; 0], read(from));
        }
    };
    ([$label:ident in $list:ident] $read:expr) => {
        |from, to| {
            let read: fn(&MetricInputs, $list) -> _ = $read;
            for item in $list::ALL {
                to.put([item.label()], read(from, item));
            }
        }
    };
    ([$label:ident in $list:ident, $other:ident in $others:ident] $read:expr) => {
        |from, to| {
            let read: fn(&MetricInputs, $list, $others) -> _ = $read;
            for item in $list::ALL {
                for other in $others::ALL {
                    to.put([item.label(), other.label()], read(from, item, other));
                }
            }
        }
    };
    ([$($label:ident),+] $read:expr) => { $read };
}

pub(super) use {labels, read, series};

/// A count as a float, which is exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "nothing is counted up to 2^53")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

/// Nanoseconds as seconds.
pub(super) fn seconds(ns: u64) -> f64 {
    float(ns) / 1e9
}
