//! How a value is read as the type of its setting, and what a person is shown if it is not one: the
//! value as it is written, what the setting takes, and what was probably meant.
//!
//! There is one reader for each type, whether the value comes from the file, a variable or a flag.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use toml::Value as Toml;

/// Most characters of a value that a message quotes.
const QUOTED_CHARACTERS_MAX: usize = 60;

/// What is known about a setting while a value of it is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct ValueContext<'a> {
    /// The section's name.
    pub(super) section: &'a str,
    /// The key within the section.
    pub(super) key: &'a str,
    /// The default, which serves as an example.
    pub(super) default: &'a Toml,
    /// Whether the value is a variable's or a flag's, where texts have no quotes.
    pub(super) is_bare: bool,
}

/// Why a value, or an item of a list, is not one that the setting takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ValueError {
    /// The item's index in the list, from 0; `None`: the whole value.
    pub(super) item: Option<usize>,
    /// The value or the item: a string as it is, anything else in TOML.
    pub(super) value: String,
    /// What is wrong, with the value quoted.
    pub(super) message: String,
    /// What was probably meant.
    pub(super) meant: Option<String>,
}

impl ValueError {
    /// A value with what is wrong with it, in words that follow the quoted value.
    pub(super) fn new(value: &Toml, what: &str) -> Self {
        let message = format!("{} {what}", quoted(value));
        Self { item: None, value: bare(value), message, meant: None }
    }

    /// The same, with what was probably meant.
    pub(super) fn meaning(self, meant: Option<String>) -> Self {
        Self { meant, ..self }
    }

    /// The only error of a value.
    pub(super) fn alone<T>(self) -> Result<T, Vec<Self>> {
        Err(vec![self])
    }
}

impl ValueContext<'_> {
    /// A text as one would write it here.
    pub(super) fn literal(&self, text: &str) -> String {
        if self.is_bare { text.to_owned() } else { format!("{text:?}") }
    }

    /// A number or a word as one would write it here in place of `written`.
    fn unquoted(&self, meant: &str, written: &Toml) -> String {
        let had_quotes = written.is_str() && !self.is_bare;
        format!("{meant}{}", if had_quotes { ", without quotes" } else { "" })
    }
}

/// A value as a message quotes it.
fn quoted(value: &Toml) -> String {
    let text = match value {
        Toml::String(text) => format!("{text:?}"),
        other => other.to_string(),
    };
    match text.char_indices().nth(QUOTED_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A value as programs get it.
pub(super) fn bare(value: &Toml) -> String {
    match value {
        Toml::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Reads a whole number within bounds. The last letters of the key name its unit.
pub(super) fn number(
    value: &Toml,
    context: &ValueContext<'_>,
    bounds: (u64, u64),
) -> Result<u64, Vec<ValueError>> {
    let is_seconds = context.key.ends_with("_s") || context.key.ends_with("_s_max");
    let read = match value {
        Toml::Integer(number) => u64::try_from(*number).ok(),
        _ => {
            let unit = if is_seconds { " of seconds" } else { "" };
            let example = context.default.as_integer().filter(|it| *it > 0);
            let example = example.map(|it| format!(", such as {it}")).unwrap_or_default();
            let what = format!("is not a whole number{unit}{example}");
            let meant = number_meant_by(value, is_seconds);
            let meant = meant.filter(|it| (bounds.0..=bounds.1).contains(it));
            let meant = meant.map(|it| context.unquoted(&it.to_string(), value));
            return ValueError::new(value, &what).meaning(meant).alone();
        }
    };
    match read.filter(|it| (bounds.0..=bounds.1).contains(it)) {
        Some(number) => Ok(number),
        None => ValueError::new(value, "is out of bounds").alone(),
    }
}

/// The number that a text or a fraction probably stands for: `"1800"`, `1_800.0`, `"30m"`.
fn number_meant_by(value: &Toml, is_seconds: bool) -> Option<u64> {
    let text = bare(value).to_ascii_lowercase();
    let text = text.strip_suffix(".0").unwrap_or(&text);
    let end = text.find(|it: char| !it.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let number: u64 = digits.parse().ok()?;
    let seconds = match unit.trim() {
        "" => 1,
        _ if !is_seconds => return None,
        "s" | "sec" | "second" | "seconds" => 1,
        "m" | "min" | "minute" | "minutes" => 60,
        "h" | "hour" | "hours" => 3600,
        "d" | "day" | "days" => 86_400,
        _ => return None,
    };
    number.checked_mul(seconds)
}

/// Reads `true` or `false`.
pub(super) fn truth(value: &Toml, context: &ValueContext<'_>) -> Result<bool, Vec<ValueError>> {
    if let Toml::Boolean(truth) = value {
        return Ok(*truth);
    }
    let meant = match bare(value).to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" | "y" | "enabled" => Some("true"),
        "false" | "no" | "off" | "0" | "n" | "disabled" => Some("false"),
        _ => None,
    };
    let meant = meant.map(|it| context.unquoted(it, value));
    ValueError::new(value, "is neither true nor false").meaning(meant).alone()
}

/// Reads a text.
pub(super) fn string(value: &Toml) -> Result<String, Vec<ValueError>> {
    match value {
        Toml::String(text) => Ok(text.clone()),
        other => {
            let meant = (!other.is_array() && !other.is_table()).then(|| format!("\"{other}\""));
            ValueError::new(value, "is not a text in quotes").meaning(meant).alone()
        }
    }
}

/// Reads a list with a reader for its items. All bad items are named.
pub(super) fn list<T>(
    value: &Toml,
    mut item: impl FnMut(&Toml) -> Result<T, ValueError>,
) -> Result<Vec<T>, Vec<ValueError>> {
    let Toml::Array(items) = value else {
        let meant = value.is_str().then(|| format!("[{value}]"));
        return ValueError::new(value, "is not a list").meaning(meant).alone();
    };
    let (mut read, mut errors) = (Vec::with_capacity(items.len()), Vec::new());
    for (at, value) in items.iter().enumerate() {
        match item(value) {
            Ok(value) => read.push(value),
            Err(error) => errors.push(ValueError { item: Some(at), ..error }),
        }
    }
    if errors.is_empty() { Ok(read) } else { Err(errors) }
}

/// Reads an address with a port.
pub(super) fn address(value: &Toml, context: &ValueContext<'_>) -> Result<SocketAddr, ValueError> {
    let Toml::String(text) = value else {
        return Err(ValueError::new(value, "is not an address with a port, in quotes"));
    };
    text.parse().map_err(|_| {
        let (what, meant) = address_meant_by(text.trim(), &Usual::of(context));
        ValueError::new(value, what).meaning(meant.map(|it| context.literal(&it)))
    })
}

/// The address that a setting has if only a part of it is written.
struct Usual {
    ip: String,
    port: u16,
}

impl Usual {
    fn of(context: &ValueContext<'_>) -> Self {
        let first = context.default.as_array().and_then(|it| it.first());
        let first = first.unwrap_or(context.default).as_str().unwrap_or_default();
        let usual = first.parse::<SocketAddr>().ok();
        let ip = usual.map_or_else(|| "0.0.0.0".to_owned(), |it| it.ip().to_string());
        let elsewhere = if context.section == "tls" { 443 } else { 6969 };
        Self { ip, port: usual.map_or(elsewhere, |it| it.port()) }
    }
}

/// Why a text is not an address with a port, and the address that was probably meant.
fn address_meant_by(text: &str, usual: &Usual) -> (&'static str, Option<String>) {
    let split = text.rsplit_once(':');
    let port = split.and_then(|(_, port)| port.parse::<u16>().ok());
    let v6 = split.and_then(|(ip, _)| ip.parse::<Ipv6Addr>().ok());
    if let (Some(ip), Some(port)) = (v6, port) {
        return ("lacks brackets around its IPv6 address", Some(format!("[{ip}]:{port}")));
    }
    let without_brackets = text.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    if let Ok(ip) = without_brackets.unwrap_or(text).parse::<IpAddr>() {
        return ("has no port", Some(SocketAddr::new(ip, usual.port).to_string()));
    }
    if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse::<u16>() {
        return ("is a port without an address", Some(format!("{}:{port}", usual.ip)));
    }
    if text.contains("://") {
        return ("is a URL, not an address with a port", None);
    }
    let (host, digits) = split.unwrap_or((text, ""));
    if text.parse::<IpAddr>().is_err() && host.parse::<IpAddr>().is_ok() {
        return ("has a port that is not from 0 to 65535", None);
    }
    let port = digits.parse().unwrap_or(usual.port);
    match host {
        "*" => ("is not an address with a port", Some(format!("0.0.0.0:{port}"))),
        "localhost" => ("has a name, not an address", Some(format!("127.0.0.1:{port}"))),
        _ if host.contains(|it: char| it.is_ascii_alphabetic()) && !host.contains(':') => {
            ("has a name, not an address", None)
        }
        _ => ("is not an address with a port", None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context<'a>(key: &'a str, default: &'a Toml) -> ValueContext<'a> {
        ValueContext { section: "server", key, default, is_bare: false }
    }

    #[test]
    fn numbers_that_are_written_otherwise_are_recognised() {
        let default = Toml::Integer(1800);
        let meant = |text: &str| {
            let value: Toml = text.parse().unwrap();
            let errors = number(&value, &context("interval_s", &default), (1, 7200)).unwrap_err();
            assert_eq!(errors.len(), 1);
            assert!(errors[0].message.starts_with(text), "{errors:?}");
            errors[0].meant.clone()
        };
        for (text, expected) in [
            ("\"30m\"", Some("1800, without quotes")),
            ("\"30 min\"", Some("1800, without quotes")),
            ("\"1800\"", Some("1800, without quotes")),
            ("1800.0", Some("1800")),
            ("\"3h\"", None),
            ("\"soon\"", None),
            ("true", None),
            ("[1]", None),
            ("-5", None),
        ] {
            assert_eq!(meant(text).as_deref(), expected, "{text}");
        }
        let errors = number(&Toml::from("x"), &context("interval_s", &default), (1, 2));
        let message = &errors.unwrap_err()[0].message;
        assert_eq!(message, "\"x\" is not a whole number of seconds, such as 1800");
    }

    #[test]
    fn words_for_true_and_false_are_recognised() {
        let default = Toml::Boolean(true);
        let meant =
            |value: Toml| truth(&value, &context("enabled", &default)).unwrap_err().remove(0).meant;
        assert_eq!(meant("yes".into()).as_deref(), Some("true, without quotes"));
        assert_eq!(meant(Toml::Integer(0)).as_deref(), Some("false"));
        assert_eq!(meant("perhaps".into()), None);
    }

    #[test]
    fn parts_of_addresses_are_recognised() {
        let default = Toml::from("127.0.0.1:6970");
        for (text, what, meant) in [
            ("6970", "is a port without an address", Some("\"127.0.0.1:6970\"")),
            (":80", "is a port without an address", Some("\"127.0.0.1:80\"")),
            ("192.0.2.1", "has no port", Some("\"192.0.2.1:6970\"")),
            ("::1", "has no port", Some("\"[::1]:6970\"")),
            ("[::]", "has no port", Some("\"[::]:6970\"")),
            ("::1:80", "lacks brackets around its IPv6 address", Some("\"[::1]:80\"")),
            ("2001:db8::1", "has no port", Some("\"[2001:db8::1]:6970\"")),
            ("*:80", "is not an address with a port", Some("\"0.0.0.0:80\"")),
            ("localhost:80", "has a name, not an address", Some("\"127.0.0.1:80\"")),
            ("tracker.example.org:80", "has a name, not an address", None),
            ("192.0.2.1:70000", "has a port that is not from 0 to 65535", None),
            ("http://192.0.2.1:80", "is a URL, not an address with a port", None),
            ("", "is not an address with a port", None),
            (":", "is not an address with a port", None),
        ] {
            let error = address(&text.into(), &context("listen", &default)).unwrap_err();
            assert_eq!(error.message, format!("{text:?} {what}"));
            assert_eq!(error.meant.as_deref(), meant, "{text}");
        }
    }

    #[test]
    fn long_values_are_cut() {
        let error = ValueError::new(&Toml::from("é".repeat(1000)), "is long");
        assert_eq!(error.message.chars().count(), QUOTED_CHARACTERS_MAX + 1 + " is long".len());
    }
}
