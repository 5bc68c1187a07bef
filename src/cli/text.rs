//! Numbers, dates and names as people read them in the output of subcommands.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::frontend::figures::grouped;

/// A count with its noun: `1 torrent`, `1,234 torrents`. The plural has an s.
pub(super) fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(number))
}

/// A moment in seconds since the Unix epoch, as RFC 3339 in UTC: `2026-11-30T13:10:00Z`. A number
/// beyond year 9999 stays a number.
pub(super) fn date(at_s: u64) -> String {
    let moment =
        i64::try_from(at_s).ok().and_then(|it| OffsetDateTime::from_unix_timestamp(it).ok());
    let text = moment.and_then(|it| it.format(&Rfc3339).ok());
    text.unwrap_or_else(|| format!("{at_s} s since the Unix epoch"))
}

/// A text from elsewhere, with its control characters escaped: it cannot move a terminal's cursor
/// or begin a line. Quotes stay as they are.
pub(super) fn escaped(text: &str) -> String {
    let escape = |character: char| match character {
        '"' | '\'' => character.to_string(),
        _ => character.escape_debug().to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_dates_read_well() {
        let found = [0, 1, 2, 1234].map(|it| count(it, "peer"));
        assert_eq!(found, ["0 peers", "1 peer", "2 peers", "1,234 peers"]);
        assert_eq!(date(1_795_303_209), "2026-11-21T23:20:09Z");
        assert_eq!(date(u64::MAX), "18446744073709551615 s since the Unix epoch");
    }

    #[test]
    fn what_moves_a_cursor_is_escaped() {
        assert_eq!(
            escaped("a\x1b[2J\n\u{202e}\\ \"it's\" ü"),
            r#"a\u{1b}[2J\n\u{202e}\\ "it's" ü"#
        );
    }
}
