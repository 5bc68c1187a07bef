//! The configuration: every setting with its default, its bounds and its documentation.
//!
//! Each setting is defined once: its doc comment is its documentation and the comment above it in
//! the output of `skep config`, and errors quote its bounds. Settings come from a file, the
//! environment and flags. The later override the earlier: see [`SettingsSource`].
//!
//! Only the server and the command line use [`Config`]. Other modules have options of their own.

mod addresses;
mod cluster;
mod error;
mod markdown;
mod read;
mod relations;
mod similar;
mod source;
mod values;

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use serde::Serialize;

use read::{ValueContext, ValueError};

pub use cluster::ServerUrl;
pub use error::{ConfigError, ConfigFinding, ConfigPlace, ConfigSeverity, ConfigTopic};
pub use relations::token_fault;
pub use source::{Assignment, ConfigReport, SettingsSource};
use values::Value;
pub use values::{
    AccessMode, Bytes, ConnectionIdMac, InterfaceList, Io, LogFormat, LogLevel, MemoryCap,
    NetworkList, SnapshotMode, SourceHeader, XDP_INTERFACES_MAX, Xdp, XdpMode, XdpNeighbours,
};

/// A setting, without its value.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The section's name.
    pub section: &'static str,
    /// The key within the section.
    pub key: &'static str,
    /// Lines of documentation.
    pub help: &'static [&'static str],
    /// The allowed values, in words.
    pub allowed: String,
    /// Whether a reload (SIGHUP) applies a new value; otherwise a restart is needed.
    pub is_live: bool,
}

/// A setting whose value differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The setting, as `section.key`.
    pub setting: String,
    /// The old value, as TOML.
    pub before: String,
    /// The new value, as TOML.
    pub after: String,
    /// Whether a reload applies the new value.
    pub is_live: bool,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} (was {})", self.setting, self.after, self.before)
    }
}

/// Declares the sections: a type for each, the defaults, and the functions [`settings`] and
/// [`set`]. A setting is `name: type = default`, with bounds `in low..=high` if it is a
/// number, and `=> live` if a reload applies a new value.
macro_rules! sections {
    ($(
        $(#[doc = $about:literal])+
        $section:ident: $name:ident {
            $(
                $(#[doc = $help:literal])+
                $key:ident: $type:ty = $default:expr
                    $(, in $low:literal ..= $high:literal)? $(=> $change:ident)?;
            )+
        }
    )+) => {
        /// All settings.
        #[derive(Clone, Debug, Default, PartialEq, Serialize)]
        pub struct Config {
            $( $(#[doc = $about])+ pub $section: $name, )+
        }

        $(
            $(#[doc = $about])+
            #[derive(Clone, Debug, PartialEq, Serialize)]
            pub struct $name {
                $( $(#[doc = $help])+ pub $key: $type, )+
            }

            impl Default for $name {
                fn default() -> Self {
                    Self { $( $key: $default, )+ }
                }
            }
        )+

        /// The sections in print order, each with its documentation.
        const SECTIONS: &[(&str, &[&str])] = &[ $( (stringify!($section), &[ $( $about, )+ ]), )+ ];

        /// Every setting, in print order.
        pub fn settings() -> Vec<Setting> {
            vec![ $( $(
                Setting {
                    section: stringify!($section),
                    key: stringify!($key),
                    help: &[ $( $help, )+ ],
                    allowed: <$type>::allowed(bounds!($( $low, $high )?)),
                    is_live: is_live!($($change)?),
                },
            )+ )+ ]
        }

        impl Config {
            /// These settings, with the live ones replaced by those of `new`.
            pub fn reloaded(&self, new: &Self) -> Self {
                let mut all = self.clone();
                $( $(
                    if is_live!($($change)?) {
                        all.$section.$key.clone_from(&new.$section.$key);
                    }
                )+ )+
                all
            }
        }

        /// Sets one setting. `None` if there is no such setting.
        ///
        /// # Errors
        /// What is wrong with the value. The setting is unchanged then.
        fn set(
            config: &mut Config,
            (section, key): (&str, &str),
            value: &toml::Value,
            is_bare: bool,
        ) -> Option<Result<(), Vec<ValueError>>> {
            $( $(
                if (section, key) == (stringify!($section), stringify!($key)) {
                    let default: $type = $default;
                    let default = toml::Value::try_from(default).unwrap_or_else(|_| "".into());
                    let context = ValueContext { section, key, default: &default, is_bare };
                    let read = <$type>::read(value, &context, bounds!($( $low, $high )?));
                    return Some(read.map(|it| config.$section.$key = it));
                }
            )+ )+
            None
        }
    };
}

/// Whether a setting is marked as one that a reload changes.
macro_rules! is_live {
    () => {
        false
    };
    (live) => {
        true
    };
}

/// A pair of bounds, if there are any.
macro_rules! bounds {
    () => {
        None
    };
    ($low:literal, $high:literal) => {
        Some(($low, $high))
    };
}

sections! {
    /// What the process listens on and runs with.
    server: Server {
        /// Addresses to serve on. Port 0 lets the kernel choose one, which the ready line names.
        /// `[::]` serves IPv6 only: add `0.0.0.0` for IPv4.
        listen: Vec<SocketAddr> = values::addresses(&["0.0.0.0:6969", "[::]:6969"]);
        /// Directory for what outlives a restart: the connection-id key, snapshots of the swarms,
        /// registered torrents, access lists. Created if absent.
        /// Empty: $STATE_DIRECTORY as set by systemd, else skep/ in the XDG state folder.
        state_dir: String = String::new();
        /// Worker threads, each pinned to a core. 0: one for each core this process may use.
        workers: u32 = 0, in 0..=1024;
        /// How datagrams are received and sent. auto: io_uring where it works, else recvmmsg with a
        /// warning; uring: io_uring or refuse to start; mmsg: recvmmsg and sendmmsg.
        io: Io = Io::Auto;
        /// Unix socket through which `skep run --take-over` requests the sockets of the running
        /// tracker; only its own user and root get them. Empty: handover.sock in server.state_dir.
        handover_socket: String = String::new();
        /// Seconds for which all requests are still served after SIGTERM, while /readyz returns 503
        /// and WebSockets are closed with "going away", one after the other. It should be as long
        /// as a balancer takes to notice: 15 in Kubernetes. A second signal ends the drain. 0: no
        /// drain.
        drain_s: u32 = 0, in 0..=3600 => live;
        /// User to change to once every socket is bound, by name or number, if skep was started as
        /// root. That user becomes the owner of the state directory, and has to be able to read
        /// certificates, lists and the key file. Empty: no change of user.
        user: String = String::new();
        /// Whether to drop, if the kernel supports it (Landlock, Linux 5.13), the right to run
        /// programs, and to write anywhere but in server.state_dir and the folders of lists and
        /// sockets that settings name. A folder that is replaced while skep runs is a different
        /// one: it can be written to only after a restart.
        confine: bool = true;
    }

    /// The UDP front end (BEP 15).
    udp: Udp {
        /// Whether UDP is served.
        enabled: bool = true;
        /// Addresses for UDP only. Empty: those of server.listen.
        listen: Vec<SocketAddr> = Vec::new();
        /// Receive buffer to request for each socket. The kernel grants at most
        /// net.core.rmem_max (without CAP_NET_ADMIN); a warning is logged if it grants less.
        receive_buffer: Bytes = Bytes(8 << 20), in 65536..=536870912;
        /// The keyed MAC of connection ids. siphash is fast; hmac-sha256 is for operators whose
        /// rules require it. Every node behind one address needs the same.
        connection_id: ConnectionIdMac = ConnectionIdMac::Siphash;
        /// File with the connection-id key as 64 hexadecimal digits, and the staging key (accepted
        /// as well, for a rollover) on a second line. Give several nodes the same file.
        /// Empty: a key of this host only, kept in server.state_dir. The variable
        /// SKEP_CONNECTION_ID_KEY (a key, or two separated by a comma) overrides both.
        key_file: String = String::new() => live;
        /// What is answered before the kernel's network stack (XDP). off: nothing. offload: a
        /// program in the kernel answers connects, and drops datagrams with a forged or expired
        /// connection id and those of denied networks; everything else goes to the sockets as
        /// before. full: the program also hands announces and scrapes to the workers directly, by
        /// an AF_XDP socket of 8 MiB for each receive queue. Needs CAP_BPF and CAP_NET_ADMIN, full
        /// also CAP_NET_RAW, connection_id = "siphash" and Linux 5.19. Host firewalls do not see
        /// what it answers: read docs/xdp.md first.
        xdp: Xdp = Xdp::Off => live;
        /// Interfaces that get the program, at most 4. Empty: those that carry the addresses in
        /// listen; for a wildcard address, those of the default routes. The loopback interface gets
        /// it only if it is named here.
        xdp_interfaces: InterfaceList = InterfaceList::default() => live;
        /// Where the program runs. native: in the interface's driver; generic: behind the driver,
        /// which every interface can do, at less gain; auto: native, or generic with a warning.
        xdp_mode: XdpMode = XdpMode::Auto => live;
        /// Where the program sends a response. swap: back to the station from which the request
        /// came, which is right behind one gateway; fib: by the kernel's routes, and through the
        /// sockets if these lead out of another interface.
        xdp_neighbours: XdpNeighbours = XdpNeighbours::Swap => live;
    }

    /// The HTTP front end (BEP 3, 7, 21, 23, 24, 31, 48), and what WebSockets share with it: one
    /// TCP port, connections, source addresses.
    http: Http {
        /// Whether announces and scrapes over HTTP are served, with and without TLS. If
        /// websocket.enabled is false as well, nothing is served over TCP but the admin listener.
        enabled: bool = true;
        /// Addresses for HTTP and WebSocket only. Empty: those of server.listen.
        listen: Vec<SocketAddr> = Vec::new();
        /// Unix socket to serve HTTP and WebSocket on, for a reverse proxy on this host. The proxy
        /// is trusted to name the client's address: a process that may connect can name any
        /// address. The socket is open to this process's user and group (mode 0660), and the proxy
        /// has to be in that group. Empty: none.
        unix_socket: String = String::new();
        /// Networks whose PROXY protocol, Forwarded, X-Forwarded-For and X-Real-IP headers are
        /// trusted: your reverse proxies.
        trusted_proxies: NetworkList = NetworkList::default() => live;
        /// The one header in which your reverse proxies write the client's address; the others,
        /// which they may pass on as the client sent them, are ignored. Empty: all three are read,
        /// and a request in which they disagree is refused.
        source_header: SourceHeader = SourceHeader::Any => live;
        /// Most TCP connections at once. 0: nine tenths of the limit on open files. Memory limits
        /// them as well: connections may use a quarter of what memory.max_memory leaves beside the
        /// process itself. An idle one takes 4 KiB, or 13 KiB with TLS. When that quarter is used
        /// up, the address that holds most of it loses connections.
        connections_max: u32 = 0, in 0..=10000000;
        /// Most connections of one address at once. All of an IPv4 /24 may have 32 times as many,
        /// of a /20 256 times, of a /18 768 times; of an IPv6 /64 twice as many, of a /56 three
        /// times, of a /48 four times, of a /32 64 times. Trusted proxies and limits.exempt are not
        /// counted. A client that exits opens one for each of its torrents, and repeats no stop.
        connections_per_source_max: u32 = 2048, in 1..=1000000 => live;
        /// Seconds in which the head of a request has to arrive.
        head_timeout_s: u32 = 5, in 1..=60 => live;
        /// Seconds after which a connection without a request is closed. It has to be longer than a
        /// reverse proxy or balancer keeps one for its next request (nginx and AWS's ALB 60,
        /// Traefik 90); otherwise a request sent while skep closes is lost. A client has at most
        /// 30 s of it to receive 64 KiB, and to send the rest of a WebSocket message.
        idle_timeout_s: u32 = 75, in 1..=3600 => live;
        /// Whether a scrape without info-hashes returns all torrents. It reads the whole store, and
        /// shows every torrent to every client.
        full_scrape: bool = false => live;
        /// Seconds a source has to wait between two full scrapes.
        full_scrape_interval_s: u32 = 300, in 0..=86400 => live;
        /// Whether /stats, /stats.json and /badge.svg are served to the public as well.
        public_stats: bool = false => live;
        /// The name of the tracker on the public /stats, for example "tracker.example.org". At most
        /// 253 bytes, as a host name, without control characters. Empty: none is shown; the name of
        /// the host itself never is.
        public_name: String = String::new() => live;
        /// A message that clients show their users with every announce (`warning message`).
        /// Empty: none.
        warning: String = String::new() => live;
        /// Text for clients to send back with every announce (`tracker id`). skep does not use it;
        /// a proxy in front may. At most 128 bytes: a request has 2 KiB for everything.
        /// Empty: none.
        tracker_id: String = String::new() => live;
    }

    /// WebTorrent: browsers find each other through WebSockets on HTTP's ports, on any path.
    websocket: Websocket {
        /// Whether WebSockets are served on HTTP's ports.
        enabled: bool = true;
        /// Seconds until a WebTorrent client's next announce.
        interval_s: u32 = 120, in 10..=7200 => live;
        /// Seconds between pings: proxies cut sockets that are silent for 60 to 100 seconds.
        ping_interval_s: u32 = 50, in 1..=3600 => live;
        /// Most offers taken from one announce.
        offers_max: u32 = 10, in 0..=50 => live;
        /// Most offers handed to one socket in a minute for each of its torrents: each makes a
        /// browser open a connection. Beyond it, offers from the networks that sent fewest are
        /// handed on first, and among equals random ones. Over all of its torrents a socket is
        /// handed 1024, or this number if it is larger. 0: no limit, as load tests need; offers
        /// from networks in limits.exempt are not limited either.
        offers_per_minute_max: u32 = 60, in 0..=10000 => live;
        /// Most swarms that one socket may be in.
        torrents_max: u32 = 1000, in 1..=100000 => live;
    }

    /// HTTPS and wss. The certificate is read again on SIGHUP, and when a file changes.
    tls: Tls {
        /// Addresses to serve TLS on, for example "0.0.0.0:443". Empty: none.
        listen: Vec<SocketAddr> = Vec::new();
        /// PEM file with the certificate and its chain.
        certificate: String = String::new();
        /// PEM file with the certificate's private key.
        key: String = String::new();
    }

    /// Who and what is served. A list is a file: one value a line, optionally followed by blanks
    /// and a reason, which clients over TCP get (200 bytes at most); empty lines and those that
    /// begin with # are ignored. What is on a deny list is refused, whatever allows it; where an
    /// allow list is in force, what is not on it is refused as well. The API (/api/v1/access) edits
    /// the files; SIGHUP reads them again, and a list with a bad line stays as it was. Without a
    /// file of its own a list is kept in server.state_dir, under access/.
    access: Access {
        /// open: any torrent, for every client. registered: torrents that were registered with
        /// `skep torrent add` or /api/v1/torrents. private: the same, for clients with a passkey
        /// (/api/v1/passkeys) in the path of the announce URL, such as /announce/PASSKEY. Both
        /// need a server.state_dir that can be written: torrents and passkeys are kept there.
        mode: AccessMode = AccessMode::Open;
        /// If torrents are registered: an unknown info-hash that differs from a registered one in
        /// at most this many of its 40 digits is refused as similar, not as unknown. One with the
        /// same first ten and last five digits always is.
        similar_digits_max: u32 = 0, in 0..=3 => live;
        /// File with the torrents that are served, as info-hashes of 40 or 64 digits or as magnet
        /// links. An empty file allows none. If not set: a list in server.state_dir, in force once
        /// it has an entry.
        torrents_allow: String = String::new() => live;
        /// File with torrents that are not served.
        torrents_deny: String = String::new() => live;
        /// File with the networks that are served, such as 192.0.2.0/24, or addresses. An empty
        /// file allows none. If not set: a list in server.state_dir, in force once it has an entry.
        networks_allow: String = String::new() => live;
        /// File with networks that are not served.
        networks_deny: String = String::new() => live;
        /// File with the clients that are served, as beginnings of peer ids such as -TR; bytes
        /// outside ASCII as %1f. An empty file allows none. If not set: a list in server.state_dir,
        /// in force once it has an entry.
        clients_allow: String = String::new() => live;
        /// File with clients that are not served.
        clients_deny: String = String::new() => live;
        /// File with ports that no peer may listen on: 25, or 6881-6889.
        ports_deny: String = String::new() => live;
    }

    /// Limits on the requests of one source, on every front end. They apply to each address and to
    /// the networks around it: an IPv4 /24 may send 32 times as much as an address, a /20 256
    /// times, a /18 768 times; an IPv6 /64 twice, a /56 3, a /48 4, a /32 64 times as much.
    limits: Limits {
        /// Whether sources are limited at all.
        enabled: bool = true => live;
        /// Whether what is over a limit is still served, and only counted: to try limits out. See
        /// skep_limited_total.
        dry_run: bool = false => live;
        /// Units of work a second for a verified address. An announce is 1, a scrape of n torrents
        /// 1 + n/8, a stop 0. Over the limit, HTTP requests are refused for about a minute, and UDP
        /// requests are dropped; of announces without an event, every 16th gets a response with the
        /// longest interval instead. Stops of peers that are not in the swarm are counted
        /// separately, under the same limit; beyond it stops are applied without a response.
        rate: u32 = 100, in 1..=1000000 => live;
        /// Units in a burst after a pause. Clients announce all their torrents when they start.
        burst: u32 = 10000, in 16..=1000000 => live;
        /// Connection ids a second for an address that is not verified yet. Such an address may be
        /// forged: over the limit, every 4th request still gets one.
        unverified_rate: u32 = 1000, in 1..=1000000 => live;
        /// Connection ids in a burst after a pause. Clients that start request one for each of
        /// their torrents.
        unverified_burst: u32 = 10000, in 16..=1000000 => live;
        /// New torrents a second for an address. Announces of more get a response, but are not
        /// stored.
        new_torrent_rate: u32 = 5, in 1..=1000000 => live;
        /// New torrents in a burst: all those of a seedbox when the tracker has started empty.
        new_torrent_burst: u32 = 10000, in 16..=10000000 => live;
        /// Requests a second over the limit from which on the kernel drops the datagrams of a
        /// source, for 30 s at a time: half the cost of a flood from few addresses. At most the 128
        /// worst sources. 0: never. Many users may share an address over its limit, and limits.rate
        /// still serves some of them: this should be well above limits.rate, such as 1000.
        kernel_deny_rate: u32 = 0, in 0..=10000000 => live;
        /// Networks without limits.
        exempt: NetworkList = values::networks(&["127.0.0.0/8", "::1/128"]) => live;
    }

    /// The tracker's rules.
    tracker: Tracker {
        /// Seconds until a client's next announce.
        interval_s: u32 = 1800, in 1..=7200 => live;
        /// Seconds to which interval_s grows while the busiest UDP worker is busy for more than
        /// 60 % of its time, in full at 90 %. 0: twice interval_s, or less if peer_age_s_max
        /// requires it. A value up to interval_s: the interval never grows.
        interval_s_max: u32 = 0, in 0..=14400 => live;
        /// Whether the interval also grows in swarms much larger than a response (256 to 8192
        /// peers), up to interval_s_max: an earlier announce there would only return other peers.
        interval_by_swarm: bool = false => live;
        /// Each response's interval is drawn from interval_s ± this, so that clients spread out.
        /// Must be below interval_s.
        interval_jitter_s: u32 = 120, in 0..=3600 => live;
        /// Seconds before which a client should not announce again, sent over HTTP (`min
        /// interval`). Where it exceeds a response's interval, that is sent instead.
        min_interval_s: u32 = 900, in 1..=7200 => live;
        /// Peers handed to a client that names no number. At most numwant_max.
        numwant_default: u32 = 50, in 1..=200 => live;
        /// Most peers in one response. A UDP response over IPv6 holds at most 67 in any case.
        numwant_max: u32 = 200, in 1..=200 => live;
        /// Seconds without an announce after which a peer is removed. Must exceed interval_s (or
        /// interval_s_max) + interval_jitter_s, and websocket.interval_s. With twice the interval,
        /// one lost announce does not matter.
        peer_age_s_max: u32 = 3900, in 2..=21600 => live;
        /// Seconds for which an empty torrent's count of completed downloads is kept. It is kept
        /// only if peers of two networks (IPv4 /24, IPv6 /48) were in the swarm when a download
        /// completed, and is removed earlier if memory is short.
        empty_torrent_age_s_max: u32 = 86400, in 0..=31536000 => live;
        /// Networks whose announces may name another address for their peer (ip, ipv4, ipv6 over
        /// HTTP, the IP field over UDP), with a port from 1024 on: for a seeder behind the same
        /// NAT as the tracker. From all other networks such addresses are ignored, because any
        /// client could name a victim.
        ip_override_from: NetworkList = NetworkList::default() => live;
    }

    /// Bounds on memory.
    memory: Memory {
        /// Limit on the resident memory of the process. It is measured, up to forty times a second
        /// if little is left, and torrents and peers may take what is left; a quarter of what the
        /// process does not need itself is for TCP connections, and in a private tracker an eighth
        /// for the sessions of passkeys. When it is used up, announces get a response but are not
        /// stored. Torrents that are created from four fifths on are evicted first. auto: three
        /// quarters of what this process may use, by its control group or the host's memory; a size
        /// such as "1GiB"; 0: no cap. With a cap, the control group's limit is kept to as well.
        /// Lowering it removes no stored peers.
        max_memory: MemoryCap = MemoryCap::Auto => live;
        /// Most peers of one torrent; 0: no cap. Beyond it, a new peer replaces a peer of a network
        /// (IPv4 /24, IPv6 /48) that has more than its share (its own network first), else a peer
        /// that has been silent for long. The default is five times the largest swarms known, so
        /// that only a flood reaches it; such a swarm takes about 25 MiB.
        max_peers_per_torrent: u32 = 1000000, in 0..=100000000 => live;
    }

    /// Snapshots of the swarms in server.state_dir: peers with their ages, counts of downloads. One
    /// is also written on a clean stop and on POST /api/v1/save. At start the latest is restored
    /// while the tracker already serves; /readyz shows when that is done.
    snapshot: Snapshot {
        /// auto: snapshots if server.state_dir can be written, else a warning, and empty swarms
        /// after a restart; on: refuse to start if it cannot be written; off: none is written or
        /// restored.
        mode: SnapshotMode = SnapshotMode::Auto;
        /// Seconds between two snapshots: what a crash loses at most. 0: only on a clean stop and
        /// on request.
        interval_s: u32 = 60, in 0..=86400 => live;
    }

    /// Several nodes with the same swarms. Each node answers from its own memory, and sends what
    /// changes to the others through brokers (NATS).
    cluster: Cluster {
        /// URLs of brokers: tls://HOST:PORT, or nats://HOST:PORT without encryption. One that can
        /// be reached is used; the others are tried when it fails. Empty: this node is alone.
        servers: Vec<ServerUrl> = Vec::new();
        /// The name of the cluster, the same on every node: 1 to 32 characters out of a-z, 0-9 and
        /// -. Clusters with different names may share brokers.
        name: String = "skep".to_owned();
        /// The name of this node, different on every node: 1 to 32 characters out of a-z, 0-9 and
        /// -. Empty: the name of the host, with other characters replaced.
        node: String = String::new();
        /// File with the secret that messages are authenticated with, the same on every node: at
        /// least 32 bytes. `openssl rand -hex 32` makes one. Needed if servers are set.
        secret_file: String = String::new();
        /// File with a JWT and its key (.creds), as `nsc` writes it. Empty: none.
        credentials_file: String = String::new();
        /// User at the brokers. Empty: none.
        user: String = String::new();
        /// File with the password of that user.
        password_file: String = String::new();
        /// File with the seed of an nkey (SU…). Empty: none.
        nkey_file: String = String::new();
        /// PEM file with the certificates of the authorities that brokers are verified with.
        /// Empty: those of the host.
        ca: String = String::new();
        /// PEM file with the certificate that this node shows to brokers. Empty: none.
        certificate: String = String::new();
        /// PEM file with that certificate's private key.
        key: String = String::new();
        /// Whether nats:// may be used to hosts other than this one, which shows addresses and
        /// info-hashes, and the password, to everybody on the path: for networks that are
        /// encrypted themselves.
        insecure: bool = false;
        /// Milliseconds for which changes are collected before they are sent.
        flush_ms: u32 = 50, in 1..=1000;
        /// Most bytes of changes that are kept: those that wait because no broker can be reached,
        /// or a slow one, and the latest that were sent, for nodes that missed them. The oldest
        /// are dropped beyond it; nodes that lack them get the peers as at a start.
        queue: Bytes = Bytes(16 << 20), in 65536..=1073741824;
        /// Seconds after which a node that starts serves as ready, although it has not received
        /// everything from another one.
        join_timeout_s: u32 = 60, in 1..=3600;
        /// Bytes a second with which this node sends its swarms to one that starts.
        join_rate: Bytes = Bytes(100_000_000), in 65536..=10737418240;
        /// Whether peers with private and loopback addresses are sent to other nodes, which is of
        /// use only if all nodes and their clients are in one network.
        replicate_private: bool = false;
    }

    /// The listener for operators: /metrics, /livez, /readyz, /startupz, /stats, /api/v1.
    admin: Admin {
        /// Address to serve HTTP on. Keep it off the Internet.
        listen: SocketAddr = values::address("127.0.0.1:6970");
        /// Token that `Authorization: Bearer …` must contain under /api/v1, for reading and for
        /// changes: 16 to 512 printable ASCII characters. Empty: a token that is created at the
        /// first start and kept in the file `admin.token` in server.state_dir, where `skep torrent`
        /// finds it; changes need it, and so does reading from another host or through a reverse
        /// proxy. SIGHUP reads that file again.
        token: String = String::new() => live;
    }

    /// What goes to standard error.
    log: Log {
        /// Least severe lines to write.
        level: LogLevel = LogLevel::Info => live;
        /// text for people, json (one object a line) for programs.
        format: LogFormat = LogFormat::Text;
        /// Whether the lines about requests that are not served (level debug) name the address of
        /// the client. Addresses are personal data in many places.
        addresses: bool = false => live;
    }
}

impl Access {
    /// The files of lists, as far as they are set: torrents, networks and clients that are served
    /// or denied, and denied ports.
    pub fn files(&self) -> [Option<&Path>; 7] {
        [
            &self.torrents_allow,
            &self.torrents_deny,
            &self.networks_allow,
            &self.networks_deny,
            &self.clients_allow,
            &self.clients_deny,
            &self.ports_deny,
        ]
        .map(|it| (!it.is_empty()).then(|| Path::new(it)))
    }
}

impl Config {
    /// Addresses that UDP is served on.
    pub fn udp_listen(&self) -> &[SocketAddr] {
        match self.udp.enabled {
            false => &[],
            true if self.udp.listen.is_empty() => &self.server.listen,
            true => &self.udp.listen,
        }
    }

    /// Addresses that HTTP and WebSocket are served on.
    pub fn http_listen(&self) -> &[SocketAddr] {
        match self.has_streams() {
            false => &[],
            true if self.http.listen.is_empty() => &self.server.listen,
            true => &self.http.listen,
        }
    }

    /// Addresses that HTTP and WebSocket are served on over TLS.
    pub fn tls_listen(&self) -> &[SocketAddr] {
        if self.has_streams() { &self.tls.listen } else { &[] }
    }

    /// The path of the Unix socket that HTTP and WebSocket are served on; empty: none.
    pub fn unix_socket(&self) -> &str {
        if self.has_streams() { &self.http.unix_socket } else { "" }
    }

    /// Whether anything is served over TCP, besides the admin listener.
    pub fn has_streams(&self) -> bool {
        self.http.enabled || self.websocket.enabled
    }

    /// Whether UDP and TCP are served on the same addresses, those of server.listen.
    pub fn shares_addresses(&self) -> bool {
        self.udp.enabled
            && self.has_streams()
            && self.udp.listen.is_empty()
            && self.http.listen.is_empty()
    }

    /// The settings as a commented TOML file.
    pub fn to_commented_toml(&self) -> String {
        let table = toml::Table::try_from(self).unwrap_or_default();
        let mut out = String::from(HEAD);
        for (section, about) in SECTIONS {
            let _ = writeln!(out, "\n\n#{}\n[{section}]", about.join("\n#"));
            for setting in settings().iter().filter(|it| it.section == *section) {
                let _ = writeln!(out, "\n#{}", setting.help.join("\n#"));
                out.push_str(if setting.is_live { RELOADED } else { "" });
                let _ = writeln!(out, "# Allowed: {}", setting.allowed);
                if let Some(value) = table.get(*section).and_then(|inner| inner.get(setting.key)) {
                    let _ = writeln!(out, "{} = {value}", setting.key);
                }
            }
        }
        out
    }

    /// What differs in `new`, in print order.
    pub fn differences(&self, new: &Self) -> Vec<Difference> {
        let before = toml::Table::try_from(self).unwrap_or_default();
        let after = toml::Table::try_from(new).unwrap_or_default();
        let value = |table: &toml::Table, setting: &Setting| {
            table.get(setting.section)?.get(setting.key).map(ToString::to_string)
        };
        let difference = |entry: Setting| {
            let (before, after) = (value(&before, &entry)?, value(&after, &entry)?);
            let setting = format!("{}.{}", entry.section, entry.key);
            let is_live = entry.is_live;
            (before != after).then_some(Difference { setting, before, after, is_live })
        };
        settings().into_iter().filter_map(difference).collect()
    }
}

/// A setting by its name, `section.key`.
pub fn setting(name: &str) -> Option<Setting> {
    let (section, key) = name.split_once('.')?;
    settings().into_iter().find(|it| (it.section, it.key) == (section, key))
}

/// The comment above a setting that a reload changes.
const RELOADED: &str = "# Reloaded by SIGHUP.\n";

/// The head of a printed file.
const HEAD: &str = "\
# skep's settings with their defaults, as printed by `skep config`.
# A file needs only what differs. The environment overrides it (SKEP__TRACKER__INTERVAL_S=900;
# lists are separated by commas), and flags override both.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documentation_says_what_is_reloaded() {
        let printed = Config::default().to_commented_toml();
        for entry in settings() {
            let (_, section) = printed.split_once(&format!("\n[{}]\n", entry.section)).unwrap();
            let (above, _) = section.split_once(&format!("\n{} = ", entry.key)).unwrap();
            let above = above.rsplit("\n\n").next().unwrap();
            assert_eq!(above.contains(RELOADED), entry.is_live, "{}.{}", entry.section, entry.key);
            assert!(!entry.help.concat().contains("eloaded by SIGHUP"), "{entry:?}: not by hand");
        }
        let live = settings().iter().filter(|it| it.is_live).count();
        assert_eq!(printed.matches(RELOADED).count(), live);
    }

    #[test]
    fn a_reload_takes_what_is_live_and_nothing_else() {
        let old = Config::default();
        let mut new = old.clone();
        new.server.drain_s = 7;
        new.server.workers = 7;
        new.access.mode = AccessMode::Private;
        new.access.ports_deny = "ports".into();
        new.http.full_scrape = true;
        new.http.unix_socket = "socket".into();
        new.tracker.interval_s = 700;
        new.log.format = LogFormat::Json;
        let reloaded = old.reloaded(&new);
        let mut expected = old;
        expected.server.drain_s = 7;
        expected.access.ports_deny = "ports".into();
        expected.http.full_scrape = true;
        expected.tracker.interval_s = 700;
        assert_eq!(reloaded, expected);
        assert!(reloaded.differences(&new).iter().all(|it| !it.is_live));
        assert_eq!(reloaded.differences(&new).len(), 4);
    }
}
