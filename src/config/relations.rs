//! What only all settings together show: settings that contradict each other, and values that are
//! allowed but probably a mistake.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{Config, ConfigFinding, ConnectionIdMac, NetworkList, Xdp, values};

/// A setting that contradicts others.
pub(super) struct Conflict {
    pub(super) section: &'static str,
    pub(super) key: &'static str,
    /// Sections and keys that the setting conflicts with. If the setting has its default, one of
    /// these was set.
    pub(super) others: &'static [(&'static str, &'static str)],
    /// What is wrong, with the value named.
    pub(super) problem: String,
}

impl Conflict {
    pub(super) fn new(
        (section, key): (&'static str, &'static str),
        others: &'static [(&'static str, &'static str)],
        problem: impl Into<String>,
    ) -> Self {
        Self { section, key, others, problem: problem.into() }
    }
}

/// The settings from which the addresses come that clients are served on.
pub(super) const LISTENING: &[(&str, &str)] =
    &[("server", "listen"), ("udp", "listen"), ("http", "listen"), ("tls", "listen")];

impl Config {
    /// Everything that contradicts something else.
    pub(super) fn conflicts(&self) -> Vec<Conflict> {
        let mut all = self.address_conflicts();
        all.extend(self.tls_conflicts());
        for (key, text, bytes_max) in [
            ("public_name", &self.http.public_name, values::PUBLIC_NAME_BYTES_MAX),
            ("tracker_id", &self.http.tracker_id, values::TRACKER_ID_BYTES_MAX),
        ] {
            if text.len() > bytes_max {
                let problem = format!("has {} bytes; it may have {bytes_max}", text.len());
                all.push(Conflict::new(("http", key), &[], problem));
            }
        }
        if self.http.public_name.chars().any(char::is_control) {
            let problem = "has control characters";
            all.push(Conflict::new(("http", "public_name"), &[], problem));
        }
        let token = Some(&self.admin.token).filter(|it| !it.is_empty());
        if let Some(problem) = token.and_then(|it| token_fault(it)) {
            all.push(Conflict::new(("admin", "token"), &[], problem));
        }
        all.extend(self.interval_conflicts());
        all.extend(self.xdp_conflicts());
        all.extend(self.cluster_conflicts());
        all
    }

    /// What the XDP program cannot work with.
    fn xdp_conflicts(&self) -> Option<Conflict> {
        let is_on = self.udp.xdp != Xdp::Off;
        (is_on && self.udp.connection_id != ConnectionIdMac::Siphash).then(|| {
            let problem = "needs udp.connection_id = \"siphash\": a program in the kernel cannot \
                           compute HMAC-SHA-256; remedy: choose siphash, or udp.xdp = \"off\"";
            Conflict::new(("udp", "xdp"), &[("udp", "connection_id")], problem)
        })
    }

    /// Contradictions between the tracker's rules.
    fn interval_conflicts(&self) -> Vec<Conflict> {
        let (tracker, mut all) = (&self.tracker, Vec::new());
        let (jitter_s, interval_s) = (tracker.interval_jitter_s, tracker.interval_s);
        if jitter_s >= interval_s {
            let problem = format!("{jitter_s} must be below interval_s, which is {interval_s}");
            let others = &[("tracker", "interval_s")];
            all.push(Conflict::new(("tracker", "interval_jitter_s"), others, problem));
        }
        let (default, max) = (tracker.numwant_default, tracker.numwant_max);
        if default > max {
            let problem = format!("{default} must not exceed numwant_max, which is {max}");
            let others = &[("tracker", "numwant_max")];
            all.push(Conflict::new(("tracker", "numwant_default"), others, problem));
        }
        let age_s = tracker.peer_age_s_max;
        let longest_s = interval_s.max(tracker.interval_s_max) + jitter_s;
        if age_s <= longest_s {
            let problem = format!(
                "{age_s} must exceed the larger of interval_s and interval_s_max plus \
                 interval_jitter_s, which is {longest_s}"
            );
            let others = &[
                ("tracker", "interval_s"),
                ("tracker", "interval_s_max"),
                ("tracker", "interval_jitter_s"),
            ];
            all.push(Conflict::new(("tracker", "peer_age_s_max"), others, problem));
        }
        let web_s = self.websocket.interval_s;
        if age_s <= web_s {
            let problem = format!("{age_s} must exceed websocket.interval_s, which is {web_s}");
            let others = &[("websocket", "interval_s")];
            all.push(Conflict::new(("tracker", "peer_age_s_max"), others, problem));
        }
        all
    }

    /// Files that TLS lacks.
    fn tls_conflicts(&self) -> Vec<Conflict> {
        let tls = &self.tls;
        let files = [("certificate", &tls.certificate), ("key", &tls.key)];
        let missing = files.iter().filter(|it| !self.tls_listen().is_empty() && it.1.is_empty());
        let conflict = |(key, _): &(&'static str, _)| {
            let problem = "is empty, but tls.listen is set; remedy: name a PEM file, or leave \
                           tls.listen empty";
            Conflict::new(("tls", *key), &[("tls", "listen")], problem)
        };
        missing.map(conflict).collect()
    }

    /// Values that are allowed but probably a mistake. Settings with a fault have their default.
    pub(super) fn warnings(&self, faulty: &BTreeSet<String>) -> Vec<ConfigFinding> {
        let mut warnings = Vec::new();
        let files = [("tls.certificate", &self.tls.certificate), ("tls.key", &self.tls.key)];
        let unused = files.iter().find(|it| !it.1.is_empty());
        let is_unserved = self.tls.listen.is_empty() && !faulty.contains("tls.listen");
        if let Some((key, _)) = unused.filter(|_| is_unserved) {
            let text = "is set, but TLS is not served: tls.listen is empty; remedy: set \
                        tls.listen, for example to [\"0.0.0.0:443\", \"[::]:443\"]";
            warnings.push(ConfigFinding::warning(text).about(*key));
        }
        if !self.tls.listen.is_empty() && !self.has_streams() {
            let text = "is set, but nothing is served there: http.enabled and websocket.enabled \
                        are false; remedy: set one of them to true, or leave it empty";
            warnings.push(ConfigFinding::warning(text).about("tls.listen"));
        }
        warnings.extend(self.cluster_warnings(faulty.contains("cluster.servers")));
        warnings.extend(self.exposures());
        let from = |section| if self.is_own(section) { section } else { "server" };
        for (kind, section, addresses) in [
            ("UDP", from("udp"), self.udp_listen()),
            ("HTTP", from("http"), self.http_listen()),
            ("TLS", "tls", self.tls_listen()),
        ] {
            let is_wildcard = |it: &&SocketAddr| it.ip().is_unspecified() && it.is_ipv6();
            let alone = addresses.iter().all(SocketAddr::is_ipv6);
            if let Some(wildcard) = addresses.iter().find(is_wildcard).filter(|_| alone) {
                let port = wildcard.port();
                let text = format!(
                    "{kind} is served over IPv6 alone: {wildcard} does not include IPv4; remedy: \
                     listen on \"0.0.0.0:{port}\" as well, unless this is intended"
                );
                warnings.push(ConfigFinding::warning(text).about(format!("{section}.listen")));
            }
        }
        warnings
    }

    /// Settings that trust everybody, or show to everybody what is for operators.
    fn exposures(&self) -> Vec<ConfigFinding> {
        let lists = [
            ("http.trusted_proxies", &self.http.trusted_proxies),
            ("tracker.ip_override_from", &self.tracker.ip_override_from),
        ];
        let trusts_all =
            |(_, list): &(_, &NetworkList)| list.0.iter().any(|it| it.prefix_len() == 0);
        let mut warnings: Vec<_> = lists
            .into_iter()
            .filter(trusts_all)
            .map(|(key, _)| {
                let text = "lists every address: every client may name any address as its peer's; \
                            remedy: list your own addresses alone";
                ConfigFinding::warning(text).about(key)
            })
            .collect();
        let admin = self.admin.listen;
        if admin.ip().is_unspecified() {
            let text = format!(
                "{admin} is every address of this host: whoever reaches one of them reads metrics \
                 and statistics; remedy: listen on 127.0.0.1 or a private address, or keep the \
                 port off the Internet (deploy/systemd/skep.nft)"
            );
            warnings.push(ConfigFinding::warning(text).about("admin.listen"));
        }
        warnings
    }

    /// Whether a front end has addresses of its own, and not those of server.listen.
    pub(super) fn is_own(&self, section: &str) -> bool {
        match section {
            "udp" => !self.udp.listen.is_empty(),
            _ => !self.http.listen.is_empty(),
        }
    }
}

/// Least bytes of a token: a shorter one could be guessed.
const TOKEN_BYTES_MIN: usize = 16;

/// Most bytes of a token: it must fit into the head of a request.
const TOKEN_BYTES_MAX: usize = 512;

/// Why a text cannot be a token of the API; `None` if it can.
pub fn token_fault(token: &str) -> Option<String> {
    let is_printable = token.bytes().all(|it| matches!(it, b' '..=b'~'));
    let is_fit = (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len());
    (!is_fit || !is_printable || token.trim() != token).then(|| {
        format!(
            "needs {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} printable ASCII characters, no blank at \
             either end (openssl rand -hex 24 makes one)"
        )
    })
}
