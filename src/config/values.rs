//! The types of settings that the standard library lacks, and the description of the allowed values
//! of each type.

use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::networks;

/// The I/O backend for datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// io_uring if it works, else recvmmsg.
    Auto,
    /// io_uring only.
    Uring,
    /// recvmmsg and sendmmsg only.
    Mmsg,
}

/// The keyed MAC of connection ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionIdMac {
    /// SipHash-2-4.
    Siphash,
    /// HMAC-SHA-256, truncated.
    HmacSha256,
}

/// Headers in which reverse proxies name clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceHeader {
    /// All headers that are present.
    Any,
    /// RFC 7239.
    Forwarded,
    /// A list of addresses.
    XForwardedFor,
    /// One address.
    XRealIp,
}

/// Which torrents and clients are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessMode {
    /// Any torrent, any client.
    Open,
    /// Registered torrents, any client.
    Registered,
    /// Registered torrents, clients with a passkey.
    Private,
}

/// Whether swarms are kept across restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotMode {
    /// If the state directory can be written.
    Auto,
    /// Always. skep refuses to start if it cannot.
    On,
    /// Never.
    Off,
}

/// Severities of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Errors that end or severely limit the process.
    Error,
    /// Conditions that the operator should change.
    Warn,
    /// Important events.
    Info,
    /// Minor events.
    Debug,
    /// Everything.
    Trace,
}

/// Formats of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// A number of bytes, written with or without a unit, in any case: `"8MiB"`, `65536`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// Units of [`Bytes`], largest first.
const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, unit): &&(&str, u64)| self.0 >= *unit && self.0.is_multiple_of(*unit);
        let (name, unit) = UNITS.iter().find(fits).unwrap_or(&("B", 1));
        write!(f, "{}{name}", self.0 / unit)
    }
}

/// A text is not a number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a number of bytes")]
pub struct BytesError(String);

impl std::str::FromStr for Bytes {
    type Err = BytesError;

    fn from_str(text: &str) -> Result<Self, BytesError> {
        let split = |(name, unit): &(&str, u64)| {
            let at = text.len().checked_sub(name.len())?;
            let (digits, end) = text.split_at_checked(at)?;
            end.eq_ignore_ascii_case(name).then(|| (digits.trim_end(), *unit))
        };
        let (digits, unit) = UNITS.iter().find_map(split).unwrap_or((text, 1));
        let number: Option<u64> = digits.parse().ok().filter(|_| !digits.starts_with('+'));
        let bytes = number.and_then(|it| it.checked_mul(unit));
        bytes.map(Self).ok_or_else(|| BytesError(text.to_owned()))
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Bytes, E> {
                let bytes = u64::try_from(number).map(Bytes);
                bytes.map_err(|_| E::custom(format!("{number} is not a number of bytes")))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Networks, each in a form that [`networks::parse`] reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkList(pub Vec<IpNet>);

impl Serialize for NetworkList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for NetworkList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Network(IpNet);
        impl<'de> Deserialize<'de> for Network {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                networks::parse(&text).map(Self).map_err(de::Error::custom)
            }
        }
        let networks = Vec::<Network>::deserialize(deserializer)?;
        Ok(Self(networks.into_iter().map(|it| it.0).collect()))
    }
}

/// Most bytes of the `tracker id`: clients send it back, escaped, in every request.
pub(super) const TRACKER_ID_BYTES_MAX: usize = 128;

/// The cap on resident memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryCap {
    /// Three quarters of the memory that the process may use.
    Auto,
    /// This many bytes; 0: no cap.
    Bytes(Bytes),
}

/// The lowest cap. Below it there would be little room besides the program itself.
pub(super) const MEMORY_CAP_MIN: Bytes = Bytes(64 << 20);

impl std::str::FromStr for MemoryCap {
    type Err = BytesError;

    fn from_str(text: &str) -> Result<Self, BytesError> {
        let is_auto = text.eq_ignore_ascii_case("auto");
        if is_auto { Ok(Self::Auto) } else { text.parse().map(Self::Bytes) }
    }
}

impl Serialize for MemoryCap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Bytes(bytes) => bytes.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for MemoryCap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected \"auto\" or a number of bytes")]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Self::Bytes(Bytes(bytes))),
            Written::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

impl Value for MemoryCap {
    fn allowed(_: Option<(u64, u64)>) -> String {
        format!("\"auto\", \"{MEMORY_CAP_MIN}\" or more, 0")
    }
}

/// The allowed values of a setting's type.
pub(super) trait Value {
    /// The allowed values in words, within bounds if there are any.
    fn allowed(bounds: Option<(u64, u64)>) -> String;
}

/// A setting that may have bounds.
pub(super) trait Numeric {
    /// The value to compare with the bounds.
    fn number(&self) -> u64;
}

impl Numeric for u32 {
    fn number(&self) -> u64 {
        u64::from(*self)
    }
}

impl Numeric for Bytes {
    fn number(&self) -> u64 {
        self.0
    }
}

impl Value for u32 {
    fn allowed(bounds: Option<(u64, u64)>) -> String {
        const ALL: (u64, u64) = (0, u32::MAX as u64);
        let (low, high) = bounds.unwrap_or(ALL);
        format!("{low} to {high}")
    }
}

impl Value for Bytes {
    fn allowed(bounds: Option<(u64, u64)>) -> String {
        let (low, high) = bounds.unwrap_or((0, u64::MAX));
        format!("\"{}\" to \"{}\"", Self(low), Self(high))
    }
}

/// What a setting that is a text allows.
pub(super) const ANY_STRING: &str = "a string";

impl Value for String {
    fn allowed(_: Option<(u64, u64)>) -> String {
        ANY_STRING.into()
    }
}

impl Value for bool {
    fn allowed(_: Option<(u64, u64)>) -> String {
        "true, false".into()
    }
}

impl Value for NetworkList {
    fn allowed(_: Option<(u64, u64)>) -> String {
        "a list of networks or addresses, such as [\"192.0.2.0/24\", \"2001:db8::1\"]".into()
    }
}

impl Value for SocketAddr {
    fn allowed(_: Option<(u64, u64)>) -> String {
        "an address with a port, such as \"127.0.0.1:6970\" or \"[::1]:6970\"".into()
    }
}

impl Value for Vec<SocketAddr> {
    fn allowed(_: Option<(u64, u64)>) -> String {
        "a list of addresses with ports, such as [\"0.0.0.0:6969\", \"[::]:6969\"]".into()
    }
}

/// Defines the names of an enum's variants in settings: written in lower case, read in any case.
macro_rules! choices {
    ($($type:ident: $($variant:ident $name:literal)+;)+) => {
        $(
            impl $type {
                /// The names of all variants, in order.
                const NAMES: &[&str] = &[$($name),+];
            }

            impl Value for $type {
                fn allowed(_: Option<(u64, u64)>) -> String {
                    [$( concat!("\"", $name, "\"") ),+].join(", ")
                }
            }

            impl Serialize for $type {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    serializer.serialize_str(match self { $( Self::$variant => $name, )+ })
                }
            }

            impl<'de> Deserialize<'de> for $type {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    let text = String::deserialize(deserializer)?;
                    match text.to_ascii_lowercase().as_str() {
                        $( $name => Ok(Self::$variant), )+
                        _ => Err(de::Error::unknown_variant(&text, Self::NAMES)),
                    }
                }
            }
        )+
    };
}

choices! {
    Io: Auto "auto" Uring "uring" Mmsg "mmsg";
    ConnectionIdMac: Siphash "siphash" HmacSha256 "hmac-sha256";
    SourceHeader: Any "" Forwarded "forwarded" XForwardedFor "x-forwarded-for" XRealIp "x-real-ip";
    AccessMode: Open "open" Registered "registered" Private "private";
    SnapshotMode: Auto "auto" On "on" Off "off";
    LogLevel: Off "off" Error "error" Warn "warn" Info "info" Debug "debug" Trace "trace";
    LogFormat: Text "text" Json "json";
}

/// A default address. Tests read every default.
pub(super) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| unreachable!("a default is an address: {text}"))
}

/// Default networks.
pub(super) fn networks(texts: &[&str]) -> NetworkList {
    let network = |it: &&str| networks::parse(it).unwrap_or_else(|it| unreachable!("{it}"));
    NetworkList(texts.iter().map(network).collect())
}

/// Default addresses.
pub(super) fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|it| address(it)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_on_memory_is_a_word_or_a_number_of_bytes() {
        for (text, cap) in [("auto", MemoryCap::Auto), ("1GiB", MemoryCap::Bytes(Bytes(1 << 30)))] {
            assert_eq!(text.parse(), Ok(cap));
            let written = toml::Value::try_from(cap).unwrap();
            assert_eq!(written.as_str(), Some(text));
            assert_eq!(written.try_into(), Ok(cap));
        }
        assert_eq!(toml::Value::Integer(0).try_into(), Ok(MemoryCap::Bytes(Bytes(0))));
        assert_eq!("AUTO".parse(), Ok(MemoryCap::Auto));
        assert_eq!("1gib".parse(), Ok(MemoryCap::Bytes(Bytes(1 << 30))));
        for bad in ["", "automatic", "half", "-1"] {
            assert!(bad.parse::<MemoryCap>().is_err(), "{bad}");
        }
        assert!(toml::Value::Integer(-1).try_into::<MemoryCap>().is_err());
    }

    #[test]
    fn bytes_are_written_as_they_are_read() {
        for (text, bytes) in [("8MiB", 8 << 20), ("1GiB", 1 << 30), ("3KiB", 3072), ("7B", 7)] {
            let read: Bytes = text.parse().unwrap();
            assert_eq!(read, Bytes(bytes));
            assert_eq!(read.to_string(), text);
        }
        assert_eq!("1025".parse(), Ok(Bytes(1025)));
        for text in ["8mib", "8MIB", "8 mib", "8192kib", "8388608b"] {
            assert_eq!(text.parse(), Ok(Bytes(8 << 20)), "{text}");
        }
        assert_eq!(Bytes(0).to_string(), "0B");
        for bad in ["", "MiB", "-1", "+1", "1.5GiB", "8 mb", "é", "99999999999GiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }
}
