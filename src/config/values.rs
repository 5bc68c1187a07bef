//! The types of settings that the standard library lacks, and the description of the allowed values
//! of each type.

use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use toml::Value as Toml;

use super::read::{self, ValueContext, ValueError, bare};
use super::similar::similar;
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

/// Which datagrams are answered before the kernel's network stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xdp {
    /// None.
    Off,
    /// Connects are answered, and what is forged is dropped, by a program in the kernel.
    Offload,
    /// The same, and announces and scrapes reach the workers through AF_XDP sockets.
    Full,
}

/// How an XDP program is attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver if that works, else behind it.
    Auto,
    /// In the driver.
    Native,
    /// Behind the driver: any interface can do that.
    Generic,
}

/// Where an XDP program sends a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpNeighbours {
    /// Back to the station that sent the request.
    Swap,
    /// Where the kernel's routes and neighbours say.
    Fib,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// A text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} {NOT_A_SIZE}")]
pub struct BytesError(String);

/// What a value is not that has no known unit.
const NOT_A_SIZE: &str = "is not a size: sizes are in KiB, MiB or GiB";

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

impl Bytes {
    /// Reads a size.
    fn of(value: &Toml, context: &ValueContext<'_>) -> Result<Self, Vec<ValueError>> {
        let read = match value {
            Toml::Integer(number) => u64::try_from(*number).ok().map(Self),
            Toml::String(text) => text.parse().ok(),
            _ => None,
        };
        let meant = || Self::meant_by(&bare(value)).map(|it| context.literal(&it.to_string()));
        read.ok_or_else(|| vec![ValueError::new(value, NOT_A_SIZE).meaning(meant())])
    }

    /// The size that a text with another unit, or a fraction, probably stands for: `4GB`, `1.5GiB`.
    fn meant_by(text: &str) -> Option<Self> {
        let text = text.trim();
        let end = text.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "k" | "kb" | "ki" | "kib" => 1 << 10,
            "m" | "mb" | "mi" | "mib" => 1 << 20,
            "g" | "gb" | "gi" | "gib" => 1 << 30,
            "t" | "tb" | "ti" | "tib" => 1_u64 << 40,
            _ => return None,
        };
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
        let digits = u32::try_from(part.len()).ok().filter(|it| *it <= 3)?;
        let part = if part.is_empty() { 0 } else { part.parse::<u64>().ok()? };
        // A fraction of a KiB is rounded down to whole KiB.
        let bytes = whole.checked_add(unit.checked_mul(part)? / 10_u64.pow(digits))?;
        Some(Self(bytes >> 10 << 10)).filter(|it| it.0 > 0)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
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

/// Names of network interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceList(pub Vec<String>);

impl Serialize for InterfaceList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// Most interfaces with an XDP program. Each has a program and counters in the kernel, and series
/// in the metrics.
pub const XDP_INTERFACES_MAX: usize = 4;

/// Most bytes of an interface's name: the kernel's `IFNAMSIZ` without its end.
const INTERFACE_BYTES_MAX: usize = 15;

/// Most bytes of the `tracker id`: clients send it back, escaped, in every request.
pub(super) const TRACKER_ID_BYTES_MAX: usize = 128;

/// Most bytes of the public name: those of a host name.
pub(super) const PUBLIC_NAME_BYTES_MAX: usize = 253;

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

impl Serialize for MemoryCap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Bytes(bytes) => bytes.serialize(serializer),
        }
    }
}

/// The type of a setting.
pub(super) trait Value: Sized {
    /// The allowed values in words, within bounds if there are any.
    fn allowed(bounds: Option<(u64, u64)>) -> String;

    /// Reads a value, within bounds if there are any.
    ///
    /// # Errors
    /// What is wrong with it, or with each bad item of a list.
    fn read(
        value: &Toml,
        context: &ValueContext<'_>,
        bounds: Option<(u64, u64)>,
    ) -> Result<Self, Vec<ValueError>>;
}

impl Value for u32 {
    fn allowed(bounds: Option<(u64, u64)>) -> String {
        let (low, high) = bounds.unwrap_or(ALL_U32);
        format!("{low} to {high}")
    }

    fn read(
        value: &Toml,
        context: &ValueContext<'_>,
        bounds: Option<(u64, u64)>,
    ) -> Result<Self, Vec<ValueError>> {
        let number = read::number(value, context, bounds.unwrap_or(ALL_U32))?;
        Self::try_from(number).map_err(|_| vec![ValueError::new(value, "is out of bounds")])
    }
}

/// The bounds of a number that has none of its own.
const ALL_U32: (u64, u64) = (0, u32::MAX as u64);

impl Value for Bytes {
    fn allowed(bounds: Option<(u64, u64)>) -> String {
        let (low, high) = bounds.unwrap_or((0, u64::MAX));
        format!("\"{}\" to \"{}\"", Self(low), Self(high))
    }

    fn read(
        value: &Toml,
        context: &ValueContext<'_>,
        bounds: Option<(u64, u64)>,
    ) -> Result<Self, Vec<ValueError>> {
        let bytes = Self::of(value, context)?;
        let (low, high) = bounds.unwrap_or((0, u64::MAX));
        if (low..=high).contains(&bytes.0) {
            Ok(bytes)
        } else {
            ValueError::new(value, "is out of bounds").alone()
        }
    }
}

impl Value for MemoryCap {
    fn allowed(_: Option<(u64, u64)>) -> String {
        format!("\"auto\", \"{MEMORY_CAP_MIN}\" or more, 0")
    }

    fn read(
        value: &Toml,
        context: &ValueContext<'_>,
        _: Option<(u64, u64)>,
    ) -> Result<Self, Vec<ValueError>> {
        if value.as_str().is_some_and(|it| it.eq_ignore_ascii_case("auto")) {
            return Ok(Self::Auto);
        }
        match Bytes::of(value, context) {
            Ok(bytes) if bytes.0 > 0 && bytes < MEMORY_CAP_MIN => {
                let what = format!("is too little: the least is {MEMORY_CAP_MIN}");
                ValueError::new(value, &what).alone()
            }
            Ok(bytes) => Ok(Self::Bytes(bytes)),
            Err(mut errors) => {
                if let Some(auto) = value.as_str().and_then(|it| similar(it, ["auto"])) {
                    errors.iter_mut().for_each(|it| it.meant = Some(context.literal(auto)));
                }
                Err(errors)
            }
        }
    }
}

/// What a setting that is a text allows.
pub(super) const ANY_STRING: &str = "a string";

impl Value for String {
    fn allowed(_: Option<(u64, u64)>) -> String {
        ANY_STRING.into()
    }

    fn read(
        value: &Toml,
        _: &ValueContext<'_>,
        _: Option<(u64, u64)>,
    ) -> Result<Self, Vec<ValueError>> {
        read::string(value)
    }
}

impl Value for bool {
    fn allowed(_: Option<(u64, u64)>) -> String {
        "true, false".into()
    }

    fn read(
        value: &Toml,
        context: &ValueContext<'_>,
        _: Option<(u64, u64)>,
    ) -> Result<Self, Vec<ValueError>> {
        read::truth(value, context)
    }
}

impl Value for NetworkList {
    fn allowed(_: Option<(u64, u64)>) -> String {
        "a list of networks or addresses, such as [\"192.0.2.0/24\", \"2001:db8::1\"]".into()
    }

    fn read(
        value: &Toml,
        _: &ValueContext<'_>,
        _: Option<(u64, u64)>,
    ) -> Result<Self, Vec<ValueError>> {
        let network = |item: &Toml| {
            let text = item.as_str().ok_or_else(|| {
                ValueError::new(item, "is not a network or an address, in quotes")
            })?;
            networks::parse(text.trim()).map_err(|error| {
                let mut wrong = ValueError::new(item, "");
                wrong.message = error.to_string();
                wrong
            })
        };
        read::list(value, network).map(Self)
    }
}

impl Value for InterfaceList {
    fn allowed(_: Option<(u64, u64)>) -> String {
        format!("a list of at most {XDP_INTERFACES_MAX} interfaces, such as [\"eth0\"]")
    }

    fn read(
        value: &Toml,
        _: &ValueContext<'_>,
        _: Option<(u64, u64)>,
    ) -> Result<Self, Vec<ValueError>> {
        let is_name = |text: &str| {
            let is_fit = (1..=INTERFACE_BYTES_MAX).contains(&text.len());
            is_fit && text.bytes().all(|it| it.is_ascii_graphic() && !matches!(it, b'/' | b':'))
        };
        let name = |item: &Toml| {
            let name = item.as_str().map(str::trim).filter(|it| is_name(it));
            name.map(str::to_owned).ok_or_else(|| {
                let what = "is not the name of an interface: 1 to 15 characters, without blanks";
                ValueError::new(item, what)
            })
        };
        let mut names = read::list(value, name)?;
        names.sort();
        names.dedup();
        if names.len() > XDP_INTERFACES_MAX {
            let what = format!("has too many interfaces: at most {XDP_INTERFACES_MAX}");
            return ValueError::new(value, &what).alone();
        }
        Ok(Self(names))
    }
}

impl Value for SocketAddr {
    fn allowed(_: Option<(u64, u64)>) -> String {
        "an address with a port, such as \"127.0.0.1:6970\" or \"[::1]:6970\"".into()
    }

    fn read(
        value: &Toml,
        context: &ValueContext<'_>,
        _: Option<(u64, u64)>,
    ) -> Result<Self, Vec<ValueError>> {
        read::address(value, context).map_err(|it| vec![it])
    }
}

impl Value for Vec<SocketAddr> {
    fn allowed(_: Option<(u64, u64)>) -> String {
        "a list of addresses with ports, such as [\"0.0.0.0:6969\", \"[::]:6969\"]".into()
    }

    fn read(
        value: &Toml,
        context: &ValueContext<'_>,
        _: Option<(u64, u64)>,
    ) -> Result<Self, Vec<ValueError>> {
        read::list(value, |item| read::address(item, context))
    }
}

/// Reads one of the names of an enum; a word for a truth if that is one of them.
fn choice(
    value: &Toml,
    context: &ValueContext<'_>,
    names: &[&str],
) -> Result<usize, Vec<ValueError>> {
    let text = match value {
        Toml::String(text) => text.to_ascii_lowercase(),
        Toml::Boolean(true) => "on".to_owned(),
        Toml::Boolean(false) => "off".to_owned(),
        _ => String::new(),
    };
    let found = names.iter().position(|it| *it == text);
    if let Some(index) = found.filter(|_| value.is_str()) {
        return Ok(index);
    }
    let meant = similar(&text, names.iter().copied()).map(|it| context.literal(it));
    ValueError::new(value, "is not an allowed value").meaning(meant).alone()
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

                fn read(
                    value: &Toml,
                    context: &ValueContext<'_>,
                    _: Option<(u64, u64)>,
                ) -> Result<Self, Vec<ValueError>> {
                    let all = [$( Self::$variant ),+];
                    Ok(all[choice(value, context, Self::NAMES)?])
                }
            }

            impl Serialize for $type {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    serializer.serialize_str(match self { $( Self::$variant => $name, )+ })
                }
            }
        )+
    };
}

choices! {
    Io: Auto "auto" Uring "uring" Mmsg "mmsg";
    Xdp: Off "off" Offload "offload" Full "full";
    XdpMode: Auto "auto" Native "native" Generic "generic";
    XdpNeighbours: Swap "swap" Fib "fib";
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

    fn read<T: Value>(value: &Toml) -> Result<T, Vec<ValueError>> {
        let default = Toml::from("");
        let context = ValueContext { section: "", key: "", default: &default, is_bare: false };
        T::read(value, &context, None)
    }

    #[test]
    fn a_cap_on_memory_is_a_word_or_a_number_of_bytes() {
        for (text, cap) in [("auto", MemoryCap::Auto), ("1GiB", MemoryCap::Bytes(Bytes(1 << 30)))] {
            let written = Toml::try_from(cap).unwrap();
            assert_eq!(written.as_str(), Some(text));
            assert_eq!(read(&written), Ok(cap));
        }
        assert_eq!(read(&Toml::Integer(0)), Ok(MemoryCap::Bytes(Bytes(0))));
        assert_eq!(read(&"AUTO".into()), Ok(MemoryCap::Auto));
        assert_eq!(read(&"1gib".into()), Ok(MemoryCap::Bytes(Bytes(1 << 30))));
        for (bad, meant) in [
            ("", None),
            ("atuo", Some("\"auto\"")),
            ("half", None),
            ("-1", None),
            ("4GB", Some("\"4GiB\"")),
            ("63MiB", None),
        ] {
            let errors = read::<MemoryCap>(&bad.into()).unwrap_err();
            assert_eq!((errors.len(), errors[0].meant.as_deref()), (1, meant), "{bad}");
        }
        assert!(read::<MemoryCap>(&Toml::Integer(-1)).is_err());
        assert!(read::<MemoryCap>(&Toml::Boolean(true)).is_err());
    }

    #[test]
    fn interfaces_are_a_short_list_of_names() {
        let list = |names: &[&str]| Toml::Array(names.iter().map(|it| (*it).into()).collect());
        let names = |names: &[&str]| InterfaceList(names.iter().map(|it| (*it).into()).collect());
        assert_eq!(read(&list(&["eth1", " eth0", "eth1"])), Ok(names(&["eth0", "eth1"])));
        assert_eq!(read(&list(&["enp1s0f0np0.100"])), Ok(names(&["enp1s0f0np0.100"])));
        for bad in ["", "a/b", "eth0:1", "et h", "interface-number", "été"] {
            assert_eq!(read::<InterfaceList>(&list(&[bad])).unwrap_err().len(), 1, "{bad}");
        }
        let many: Vec<_> = (0..=XDP_INTERFACES_MAX).map(|it| format!("eth{it}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert!(read::<InterfaceList>(&list(&many)).is_err());
        assert!(read::<InterfaceList>(&list(&many[1..])).is_ok());
    }

    #[test]
    fn sizes_with_other_units_are_recognised() {
        for (text, meant) in [
            ("4GB", Some("4GiB")),
            ("4 g", Some("4GiB")),
            ("1.5GiB", Some("1536MiB")),
            ("64Mi", Some("64MiB")),
            ("2TB", Some("2048GiB")),
            ("0.5K", None),
            ("4PB", None),
            ("GB", None),
            ("1.2.3GB", None),
            ("99999999999999999999GB", None),
            ("é", None),
        ] {
            let read = Bytes::meant_by(text).map(|it| it.to_string());
            assert_eq!(read.as_deref(), meant, "{text}");
        }
    }

    #[test]
    fn names_that_are_written_otherwise_are_recognised() {
        let meant = |value: Toml| read::<SnapshotMode>(&value).unwrap_err().remove(0).meant;
        assert_eq!(meant("offf".into()).as_deref(), Some("\"off\""));
        assert_eq!(meant(Toml::Boolean(true)).as_deref(), Some("\"on\""));
        assert_eq!(meant(Toml::Integer(1)), None);
        assert_eq!(meant("never".into()), None);
        assert_eq!(read(&"OFF".into()), Ok(SnapshotMode::Off));
        assert_eq!(read(&"".into()), Ok(SourceHeader::Any));
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
