//! JSON on standard output. Names come from `.torrent` files and requests of strangers, and a
//! terminal obeys some characters that JSON may have as they are: they are written as `\uXXXX`,
//! which every parser reads as the same text.

use std::fmt::Write as _;

use serde::Serialize;

/// A value as one line, with its end.
pub(super) fn line(value: &impl Serialize) -> String {
    // Values of the subcommands have keys that are texts, so that there is no error.
    escaped(serde_json::to_string(value).unwrap_or_default()) + "\n"
}

/// Values, each as one line.
pub(super) fn lines<T: Serialize>(values: &[T]) -> String {
    values.iter().map(line).collect()
}

/// A value on several lines, indented.
pub(super) fn pretty(value: &(impl Serialize + ?Sized)) -> String {
    escaped(serde_json::to_string_pretty(value).unwrap_or_default()) + "\n"
}

/// Whether a terminal may obey a character, or reorder a line by it. JSON has escaped those below
/// U+0020 itself.
fn is_obeyed(character: char) -> bool {
    matches!(character, '\u{7f}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON in which all such characters, which only its strings have, are escaped.
fn escaped(json: String) -> String {
    if !json.contains(is_obeyed) {
        return json;
    }
    let mut text = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if is_obeyed(character) {
            let _ = write!(text, "\\u{:04x}", u32::from(character));
        } else {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn what_a_terminal_obeys_is_escaped_and_stays_the_same_text() {
        let name = "a\u{1b}\u{7f}\u{9b}2J\u{a0}ü\u{202e}\u{2066}\u{2069}\u{206a}\"\\";
        let value = json!({ "name": name, "all": [name] });
        let expected = concat!(
            r#""a\u001b\u007f\u009b2J"#,
            "\u{a0}ü",
            r"\u202e\u2066\u2069",
            "\u{206a}",
            r#"\"\\""#
        );
        for text in [line(&value), pretty(&value)] {
            assert_eq!(text.matches(expected).count(), 2, "{text}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        }
        assert_eq!(lines(&[json!(1), json!("b")]), "1\n\"b\"\n");
    }
}
