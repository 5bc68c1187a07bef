//! Log lines on standard error: text for people or JSON for machines.
//!
//! A persistent fault must not fill a disk: each cause (place in the code) writes at most one line
//! in ten seconds, and its next line has the number of lines that were suppressed. Lines about an
//! operator's own action (start, reload, stop) have the target [`OPERATOR`] and are never
//! suppressed. Requests that are not served are sampled by the workers ([`request_log`]). Control
//! characters in values are escaped. On a terminal, the level is coloured (unless NO_COLOR is set).
//!
//! A reader of standard error that does not read must not block the other threads: a thread of its
//! own writes the lines, and lines that do not fit into its queue are lost and counted.

use std::collections::HashMap;
use std::fmt;
use std::io::IsTerminal as _;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber, callsite};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Full, Json, JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;

/// The target of lines about an operator's own action.
pub(super) use crate::access_store::OPERATOR;
use crate::worker::request_log;

/// How long a cause is silent after a line.
const SILENCE: Duration = Duration::from_secs(10);

/// Most lines that wait for the reader of standard error.
const LINES_WAITING_MAX: usize = 8192;

/// Writes the waiting lines when dropped, for a second at most.
static WAITING: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// Counts the lines that did not fit into the queue.
static LOST: OnceLock<ErrorCounter> = OnceLock::new();

/// Options of the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// The least severe lines to write.
    pub(super) level: LevelFilter,
    /// JSON instead of text.
    pub(super) json: bool,
}

/// Changes the level while running.
pub(super) struct LevelHandle(reload::Handle<Targets, Registry>);

impl LevelHandle {
    /// Writes lines of this severity and worse from now on.
    pub(super) fn set(&self, level: LevelFilter) {
        // Fails only if the subscriber is gone, and then nothing is written anyway.
        let _ = self.0.reload(targets(level));
    }
}

/// Starts logging, for the whole process. A second call in one process changes nothing.
pub(super) fn start(options: Options) -> LevelHandle {
    let (filter, handle) = reload::Layer::new(targets(options.level));
    let (writer, waiting) = writer();
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    let limited = Limited::new(options.json, !options.json && colours_wanted());
    let layer = if options.json {
        layer.fmt_fields(JsonFields::new()).event_format(limited).boxed()
    } else {
        layer.event_format(limited).boxed()
    };
    let subscriber = tracing_subscriber::registry().with(layer.with_filter(filter));
    if tracing::subscriber::set_global_default(subscriber).is_ok()
        && let Some((guard, lost)) = waiting
    {
        let _ = LOST.set(lost);
        *WAITING.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    }
    LevelHandle(handle)
}

/// Whether standard error is a terminal that shows colours (<https://no-color.org>).
fn colours_wanted() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stderr().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// The destination of lines. With a thread that writes them, also the guard that flushes its queue,
/// and the count of lost lines.
fn writer() -> (BoxMakeWriter, Option<(WorkerGuard, ErrorCounter)>) {
    // If no thread can be started, the start fails soon, and has to log that.
    if std::thread::Builder::new().name("log".into()).spawn(|| ()).is_err() {
        return (BoxMakeWriter::new(std::io::stderr), None);
    }
    let builder = NonBlockingBuilder::default();
    let builder = builder.buffered_lines_limit(LINES_WAITING_MAX).lossy(true).thread_name("log");
    let (writer, guard) = builder.finish(std::io::stderr());
    let lost = writer.error_counter();
    (BoxMakeWriter::new(writer), Some((guard, lost)))
}

/// Writes the waiting lines, for a second at most. Call it when the process ends, for whatever
/// reason. Nothing is written afterwards.
pub(super) fn finish() {
    let waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(waiting);
}

/// Number of lines lost because standard error was not read.
pub(super) fn lost() -> u64 {
    LOST.get().map_or(0, |it| it.dropped_lines() as u64)
}

/// skep's own lines from `level` on; of libraries only warnings and errors. The library of the
/// cluster logs an error at each attempt to connect, which skep logs once, with a remedy.
fn targets(level: LevelFilter) -> Targets {
    let targets =
        Targets::new().with_target("skep", level).with_target("async_nats", LevelFilter::OFF);
    targets.with_default(level.min(LevelFilter::WARN))
}

/// Formats events, and suppresses repeated ones of a cause.
struct Limited {
    /// Without time and level.
    text: Format<Full, ()>,
    json: Option<Format<Json>>,
    has_colours: bool,
    causes: Mutex<HashMap<callsite::Identifier, CallSiteState>>,
}

/// What is recorded for a place in the code that has logged.
struct CallSiteState {
    written: Instant,
    held_back: u64,
}

impl Limited {
    fn new(json: bool, has_colours: bool) -> Self {
        let json = json.then(|| Format::default().with_target(false).json().flatten_event(true));
        let text = Format::default().with_target(false).with_ansi(false);
        let text = text.with_level(false).without_time();
        Self { text, json, has_colours, causes: Mutex::default() }
    }

    /// Whether an event may be written now: the number of suppressed events of its cause, or `None`
    /// if it is suppressed.
    fn admit(&self, event: &Event<'_>, now: Instant) -> Option<u64> {
        if [OPERATOR, request_log::TARGET].contains(&event.metadata().target()) {
            return Some(0);
        }
        let mut causes = self.causes.lock().unwrap_or_else(|it| it.into_inner());
        let Some(cause) = causes.get_mut(&event.metadata().callsite()) else {
            // At most one entry for each place in the code.
            causes
                .insert(event.metadata().callsite(), CallSiteState { written: now, held_back: 0 });
            return Some(0);
        };
        if now.duration_since(cause.written) < SILENCE {
            cause.held_back += 1;
            return None;
        }
        cause.written = now;
        Some(std::mem::take(&mut cause.held_back))
    }
}

impl<S, N> FormatEvent<S, N> for Limited
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    #[expect(
        clippy::disallowed_methods,
        reason = "when a line is written is no business of the core"
    )]
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(held_back) = self.admit(event, Instant::now()) else { return Ok(()) };
        let mut line = String::new();
        match &self.json {
            Some(format) => format.format_event(context, Writer::new(&mut line), event)?,
            None => {
                write_head(&mut writer, *event.metadata().level(), self.has_colours)?;
                self.text.format_event(context, Writer::new(&mut line), event)?;
            }
        }
        let line = line.trim_end();
        match (held_back, self.json.is_some(), line.strip_suffix('}')) {
            (0, ..) => write_escaped(&mut writer, line)?,
            (_, true, Some(open)) => {
                write_escaped(&mut writer, open)?;
                write!(writer, ",\"held_back\":{held_back}}}")?;
            }
            _ => {
                write_escaped(&mut writer, line)?;
                write!(writer, " held_back={held_back}")?;
            }
        }
        writer.write_char('\n')
    }
}

/// Writes the time and the level of a line of text.
fn write_head(writer: &mut Writer<'_>, level: Level, has_colours: bool) -> fmt::Result {
    if !has_colours {
        SystemTime.format_time(writer)?;
        return write!(writer, " {level:>5} ");
    }
    let colour = match level {
        Level::ERROR => "31",
        Level::WARN => "33",
        Level::INFO => "32",
        Level::DEBUG => "34",
        Level::TRACE => "35",
    };
    writer.write_str("\x1b[2m")?;
    SystemTime.format_time(writer)?;
    write!(writer, "\x1b[0m \x1b[{colour}m{level:>5}\x1b[0m ")
}

/// Writes a line, and escapes characters that would end it or control a terminal.
fn write_escaped(writer: &mut Writer<'_>, line: &str) -> fmt::Result {
    for character in line.chars() {
        if character.is_control() {
            write!(writer, "{}", character.escape_unicode())?;
        } else {
            writer.write_char(character)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The log output of `act`.
    fn logged(json: bool, act: impl FnOnce()) -> String {
        logged_by(Limited::new(json, false), act)
    }

    /// The same, by this formatter.
    fn logged_by(limited: Limited, act: impl FnOnce()) -> String {
        let json = limited.json.is_some();
        let memory = Memory::default();
        let writer = memory.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let layer = if json {
            layer.fmt_fields(JsonFields::new()).event_format(limited).boxed()
        } else {
            layer.event_format(limited).boxed()
        };
        tracing::subscriber::with_default(Registry::default().with(layer), act);
        String::from_utf8(memory.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_cause_writes_one_line_in_ten_seconds() {
        let text = logged(false, || {
            for n in 0..1000 {
                tracing::warn!(n, "again");
            }
            tracing::warn!("another");
            for _ in 0..2 {
                tracing::info!(target: OPERATOR, "asked for");
            }
        });
        assert_eq!(text.lines().count(), 4, "{text}");
    }

    /// Checks every event as if four seconds had passed since the previous one.
    struct Asker(Limited, Arc<Mutex<Vec<Option<u64>>>>, Instant);

    impl tracing_subscriber::Layer<Registry> for Asker {
        fn on_event(&self, event: &Event<'_>, _: tracing_subscriber::layer::Context<'_, Registry>) {
            let mut answers = self.1.lock().unwrap();
            let passed = Duration::from_secs(4) * u32::try_from(answers.len()).unwrap();
            answers.push(self.0.admit(event, self.2 + passed));
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    fn the_next_line_tells_how_many_were_held_back() {
        let answers = Arc::default();
        let asker = Asker(Limited::new(false, false), Arc::clone(&answers), Instant::now());
        tracing::subscriber::with_default(Registry::default().with(asker), || {
            for _ in 0..7 {
                tracing::warn!("again");
            }
        });
        let expected = [Some(0), None, None, Some(2), None, None, Some(2)];
        assert_eq!(*answers.lock().unwrap(), expected);
    }

    #[test]
    fn lines_about_requests_are_sampled_elsewhere() {
        let text = logged(false, || {
            for n in 0..3 {
                tracing::debug!(target: request_log::TARGET, n, "request refused");
            }
        });
        assert_eq!(text.lines().count(), 3, "{text}");
    }

    #[test]
    fn colours_are_those_of_the_level_and_never_those_of_a_value() {
        let odd = || tracing::warn!(path = %"a\x1b[31m", "odd");
        let (plain, coloured) = (logged(false, odd), logged_by(Limited::new(false, true), odd));
        let rest = "odd path=a\\u{1b}[31m\n";
        assert!(plain.ends_with(&format!("Z  WARN {rest}")), "{plain:?}");
        assert!(coloured.starts_with("\x1b[2m"), "{coloured:?}");
        let head = format!("Z\x1b[0m \x1b[33m WARN\x1b[0m {rest}");
        assert!(coloured.ends_with(&head), "{coloured:?}");
    }

    #[test]
    fn no_value_breaks_out_of_its_line() {
        let text = logged(false, || tracing::warn!(path = %"a\nb\x1b[31m\r", "odd"));
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.trim_end().contains(char::is_control), "{text:?}");
        let json = logged(true, || tracing::warn!(path = %"a\n\"b\"\x1b", "odd"));
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["path"], "a\n\"b\"\u{1b}");
        assert_eq!((json.lines().count(), &value["message"]), (1, &"odd".into()));
    }
}
