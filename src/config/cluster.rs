//! Settings of the cluster: the URLs of brokers, names that fit into subjects, and what contradicts
//! what.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use serde::{Serialize, Serializer};
use toml::Value as Toml;

use super::read::{self, ValueContext, ValueError};
use super::relations::Conflict;
use super::values::Value;
use super::{Cluster, Config, ConfigFinding};
use crate::types::{CLUSTER_NAME_BYTES_MAX, is_cluster_name};

/// The port of NATS.
const USUAL_PORT: u16 = 4222;

/// Most brokers in the list.
const SERVERS_MAX: usize = 32;

/// Most bytes of a host name (RFC 1035).
const HOST_BYTES_MAX: usize = 253;

/// The address of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    /// Whether the connection has to be encrypted (`tls://`).
    pub is_tls: bool,
    /// A name or an address, an IPv6 address without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl ServerUrl {
    /// Whether the connection does not leave this host.
    pub fn is_loopback(&self) -> bool {
        let ip = self.host.parse::<IpAddr>();
        ip.map_or_else(|_| is_localhost(&self.host), |ip| ip.to_canonical().is_loopback())
    }
}

fn is_localhost(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, port) = (if self.is_tls { "tls" } else { "nats" }, self.port);
        match self.host.parse::<Ipv6Addr>() {
            Ok(ip) => write!(f, "{scheme}://[{ip}]:{port}"),
            Err(_) => write!(f, "{scheme}://{}:{port}", self.host),
        }
    }
}

impl Serialize for ServerUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Value for Vec<ServerUrl> {
    fn allowed(_: Option<(u64, u64)>) -> String {
        format!("a list of at most {SERVERS_MAX} URLs, such as [\"tls://nats.example.org:4222\"]")
    }

    fn read(
        value: &Toml,
        context: &ValueContext<'_>,
        _: Option<(u64, u64)>,
    ) -> Result<Self, Vec<ValueError>> {
        // What is written in place of a list is quoted, and may have a password in it.
        if let Some(text) = value.as_str().filter(|it| it.contains('@')) {
            return read_url(&Toml::from(text), context).map_or_else(ValueError::alone, |_| {
                ValueError::new(&shown(text).into(), "is not a list").alone()
            });
        }
        let urls = read::list(value, |item| read_url(item, context))?;
        if urls.len() > SERVERS_MAX {
            let what = format!("has too many URLs: at most {SERVERS_MAX}");
            return ValueError::new(value, &what).alone();
        }
        Ok(urls)
    }
}

/// Reads a URL. A message quotes it without anything that may be a password.
fn read_url(item: &Toml, context: &ValueContext<'_>) -> Result<ServerUrl, ValueError> {
    let Some(text) = item.as_str().map(str::trim) else {
        return Err(ValueError::new(item, "is not a URL, in quotes"));
    };
    let refused = |what: &str, meant: Option<String>| {
        let meant = meant.map(|it| context.literal(&it));
        Err(ValueError::new(&shown(text).into(), what).meaning(meant))
    };
    if text.contains('@') {
        let what = "has credentials in it, which would appear in logs: use cluster.user and \
                    cluster.password_file, cluster.credentials_file or cluster.nkey_file";
        return refused(what, None);
    }
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
        None => {
            let meant = read_rest(true, text).or_else(|_| read_rest(true, &with_port(text))).ok();
            let meant = meant.map(|it| ServerUrl { is_tls: !it.is_loopback(), ..it }.to_string());
            return refused("does not begin with nats:// or tls://", meant);
        }
    };
    let is_tls = match scheme.as_str() {
        "nats" => false,
        "tls" => true,
        _ => {
            let meant = read_rest(true, rest).ok().map(|it| it.to_string());
            return refused("does not begin with nats:// or tls://", meant);
        }
    };
    read_rest(is_tls, rest).or_else(|what| {
        let bare = rest.trim_end_matches('/');
        let meant = [bare.to_owned(), with_port(bare)];
        let meant = meant.iter().find_map(|it| read_rest(is_tls, it).ok());
        refused(what, meant.map(|it| it.to_string()))
    })
}

/// A text without anything that may be a password.
fn shown(text: &str) -> String {
    let Some((secret, host)) = text.rsplit_once('@') else { return text.to_owned() };
    let scheme = secret.split_once("://").map(|it| format!("{}://", it.0));
    format!("{}…@{host}", scheme.unwrap_or_default())
}

/// A text that lacks its port, or the brackets around an IPv6 address, with them.
fn with_port(text: &str) -> String {
    let split = text.rsplit_once(':');
    let v6 = split.and_then(|(ip, port)| ip.parse::<Ipv6Addr>().ok().zip(port.parse::<u16>().ok()));
    if let Some((ip, port)) = v6 {
        return format!("[{ip}]:{port}");
    }
    match text.parse::<Ipv6Addr>() {
        Ok(ip) => format!("[{ip}]:{USUAL_PORT}"),
        Err(_) => format!("{text}:{USUAL_PORT}"),
    }
}

/// Reads what is behind the scheme.
fn read_rest(is_tls: bool, text: &str) -> Result<ServerUrl, &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or("has no port")?;
    let bracketed = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    if bracketed.is_none() && (host.contains(':') || text.ends_with(']')) {
        return Err("is not nats://HOST:PORT or tls://HOST:PORT");
    }
    let port = port.parse::<u16>().ok().filter(|it| *it > 0 && !port.starts_with('+'));
    let port = port.ok_or("has a port that is not from 1 to 65535, or something behind it")?;
    let host = match bracketed {
        Some(ip) => ip.parse::<Ipv6Addr>().ok().map(|ip| ip.to_string()),
        None => Some(host.to_owned()).filter(|it| is_host(it)),
    };
    let host = host.ok_or("has neither the name nor the address of a host in it")?;
    Ok(ServerUrl { is_tls, host, port })
}

fn is_host(text: &str) -> bool {
    let is_fit = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'.' | b'_');
    (1..=HOST_BYTES_MAX).contains(&text.len())
        && text.bytes().all(is_fit)
        && !text.starts_with(['-', '.'])
}

/// What several settings of the cluster together show.
impl Config {
    /// Settings of the cluster that contradict each other.
    pub(super) fn cluster_conflicts(&self) -> Vec<Conflict> {
        let cluster = &self.cluster;
        let mut all = Vec::new();
        for (key, name) in [("name", &cluster.name), ("node", &cluster.node)] {
            let is_default = key == "node" && name.is_empty();
            if !is_default && !is_cluster_name(name) {
                let problem = format!(
                    "{name:?} is not a name of 1 to {CLUSTER_NAME_BYTES_MAX} characters out of \
                     a-z, 0-9 and -"
                );
                all.push(Conflict::new(("cluster", key), &[], problem));
            }
        }
        let repeated = cluster.servers.iter().enumerate();
        let repeated = repeated.filter(|(at, it)| cluster.servers[..*at].contains(it));
        all.extend(repeated.take(1).map(|(_, url)| {
            Conflict::new(("cluster", "servers"), &[], format!("{url} is listed twice"))
        }));
        all.extend(cluster.connection_conflicts());
        all.extend(cluster.credentials_conflicts());
        all
    }

    /// Settings of a cluster that does not exist, or of TLS that is not used. Settings with a
    /// fault have their default.
    pub(super) fn cluster_warnings(&self, are_servers_faulty: bool) -> Option<ConfigFinding> {
        let cluster = &self.cluster;
        if are_servers_faulty {
            return None;
        }
        let texts = cluster.texts();
        if cluster.servers.is_empty() {
            let (key, _) = texts.into_iter().find(|it| !it.1.is_empty())?;
            let text = "is set, but this node is in no cluster: cluster.servers is empty; remedy: \
                        set cluster.servers, for example to [\"tls://nats.example.org:4222\"]";
            return Some(ConfigFinding::warning(text).about(format!("cluster.{key}")));
        }
        let of_tls = ["ca", "certificate", "key"];
        let unused = texts.into_iter().find(|it| of_tls.contains(&it.0) && !it.1.is_empty());
        let (key, _) = unused.filter(|_| cluster.servers.iter().all(|it| !it.is_tls))?;
        let text = "is set, but no server is asked for TLS: every URL in cluster.servers begins \
                    with nats://; remedy: write tls:// instead";
        Some(ConfigFinding::warning(text).about(format!("cluster.{key}")))
    }
}

impl Cluster {
    /// The settings that are texts and empty by default, besides the node's name.
    fn texts(&self) -> [(&'static str, &String); 8] {
        [
            ("secret_file", &self.secret_file),
            ("credentials_file", &self.credentials_file),
            ("user", &self.user),
            ("password_file", &self.password_file),
            ("nkey_file", &self.nkey_file),
            ("ca", &self.ca),
            ("certificate", &self.certificate),
            ("key", &self.key),
        ]
    }

    /// What a connection to a broker lacks.
    fn connection_conflicts(&self) -> Vec<Conflict> {
        let mut all = Vec::new();
        if self.servers.is_empty() {
            return all;
        }
        if self.secret_file.is_empty() {
            let problem = "is empty, but cluster.servers is set: messages between nodes are \
                           authenticated with a secret; remedy: make one (openssl rand -hex 32 > \
                           cluster.secret), give every node the same file, and name it here";
            all.push(Conflict::new(("cluster", "secret_file"), &[("cluster", "servers")], problem));
        }
        let is_open = |it: &&ServerUrl| !it.is_tls && !it.is_loopback();
        if let Some(url) = self.servers.iter().find(is_open).filter(|_| !self.insecure) {
            let problem = format!(
                "{url} is reached over a network without encryption: everybody on the path could \
                 read which address shares what; remedy: write tls:// instead of nats://, or set \
                 cluster.insecure = true if the network itself is encrypted"
            );
            all.push(Conflict::new(("cluster", "servers"), &[("cluster", "insecure")], problem));
        }
        all
    }

    /// Credentials of which one is too many, or one is missing.
    fn credentials_conflicts(&self) -> Vec<Conflict> {
        let mut all = Vec::new();
        let kinds = [
            ("credentials_file", &self.credentials_file),
            ("user", &self.user),
            ("nkey_file", &self.nkey_file),
        ];
        let mut set = kinds.iter().filter(|it| !it.1.is_empty()).map(|it| it.0);
        if let (Some(first), Some(second)) = (set.next(), set.next()) {
            let problem = format!(
                "is set, and so is cluster.{first}: a broker takes credentials of one kind; \
                 remedy: leave one of the two empty"
            );
            let others =
                &[("cluster", "credentials_file"), ("cluster", "user"), ("cluster", "nkey_file")];
            all.push(Conflict::new(("cluster", second), others, problem));
        }
        const PAIRS: [[&str; 2]; 2] = [["user", "password_file"], ["certificate", "key"]];
        let texts = self.texts();
        let is_set = |key: &str| texts.iter().any(|it| it.0 == key && !it.1.is_empty());
        for [one, other] in PAIRS {
            let (set, unset) = match (is_set(one), is_set(other)) {
                (true, false) => (one, other),
                (false, true) => (other, one),
                _ => continue,
            };
            let problem = format!(
                "is empty, but cluster.{set} is set: one needs the other; remedy: set both, or \
                 neither"
            );
            let others = &[
                ("cluster", "user"),
                ("cluster", "password_file"),
                ("cluster", "certificate"),
                ("cluster", "key"),
            ];
            all.push(Conflict::new(("cluster", unset), others, problem));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(texts: &[&str]) -> Result<Vec<ServerUrl>, Vec<ValueError>> {
        let value = Toml::Array(texts.iter().map(|it| (*it).into()).collect());
        let default = Toml::Array(Vec::new());
        let context =
            ValueContext { section: "cluster", key: "servers", default: &default, is_bare: false };
        Value::read(&value, &context, None)
    }

    #[test]
    fn urls_are_written_as_they_are_read() {
        for (text, written, is_loopback) in [
            ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222", true),
            (" NATS://localhost:1 ", "nats://localhost:1", true),
            ("tls://nats.example.org:65535", "tls://nats.example.org:65535", false),
            ("nats://[::1]:4222", "nats://[::1]:4222", true),
            ("tls://[2001:DB8:0:0::1]:4222", "tls://[2001:db8::1]:4222", false),
            ("nats://[::ffff:127.0.0.1]:4222", "nats://[::ffff:127.0.0.1]:4222", true),
            ("nats://skep_nats-0.skep:4222", "nats://skep_nats-0.skep:4222", false),
        ] {
            let read = urls(&[text]).unwrap();
            assert_eq!(
                (read[0].to_string().as_str(), read[0].is_loopback()),
                (written, is_loopback)
            );
            assert_eq!(urls(&[written]).unwrap(), read);
        }
    }

    #[test]
    fn what_is_not_a_url_of_a_broker_is_refused_with_what_was_meant() {
        for (text, what, meant) in [
            ("nats.example.org", "begin with", Some("\"tls://nats.example.org:4222\"")),
            ("127.0.0.1:4222", "begin with", Some("\"nats://127.0.0.1:4222\"")),
            ("::1", "begin with", Some("\"nats://[::1]:4222\"")),
            ("https://a.example:4222", "begin with", Some("\"tls://a.example:4222\"")),
            ("ws://a.example:443", "begin with", Some("\"tls://a.example:443\"")),
            ("tls://a.example", "has no port", Some("\"tls://a.example:4222\"")),
            ("tls://a.example:4222/", "has a port that is not", Some("\"tls://a.example:4222\"")),
            ("nats://::1:4222", "is not nats://HOST:PORT", Some("\"nats://[::1]:4222\"")),
            ("nats://[::1]", "is not nats://HOST:PORT", Some("\"nats://[::1]:4222\"")),
            ("nats://[fe80::1%eth0]:1", "has neither the name", None),
            ("nats://a b:1", "has neither the name", None),
            ("nats://:4222", "has neither the name", None),
            ("nats://a:0", "has a port that is not", None),
            ("nats://a:+1", "has a port that is not", None),
            ("nats://a:65536", "has a port that is not", None),
            ("", "begin with", None),
        ] {
            let errors = urls(&[text]).unwrap_err();
            assert!(errors[0].message.contains(what), "{text}: {errors:?}");
            assert_eq!((errors.len(), errors[0].meant.as_deref()), (1, meant), "{text}");
        }
        assert_eq!(urls(&["nats://a"; 3]).unwrap_err().len(), 3, "each is named");
        let many: Vec<_> = (0..=SERVERS_MAX).map(|it| format!("nats://n{it}:4222")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert!(urls(&many).is_err());
        assert!(urls(&many[1..]).is_ok());
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_quoted() {
        for text in [
            "nats://me:hunter2@a.example:4222",
            "nats://hunter2@a.example:4222",
            "me:hunter2@a.example",
            "tls://me:hunter2@p@a.example:4222/x",
        ] {
            let error = urls(&[text]).unwrap_err().remove(0);
            assert!(error.message.contains("@a.example"), "{error:?}");
            assert!(error.message.contains("which would appear in logs"), "{error:?}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn names_are_parts_of_subjects() {
        for name in ["skep", "a", "node-1", &"x".repeat(CLUSTER_NAME_BYTES_MAX)] {
            assert!(is_cluster_name(name), "{name}");
        }
        for name in
            ["", "Skep", "a.b", "a b", "a*", ">", "é", &"x".repeat(CLUSTER_NAME_BYTES_MAX + 1)]
        {
            assert!(!is_cluster_name(name), "{name}");
        }
    }
}
