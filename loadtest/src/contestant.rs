//! Trackers by name: how each is started for a run, and at which addresses it then responds.
//!
//! A contestant is `NAME=COMMAND@ADDRESS`. The command is split into words as by a shell (single
//! and double quotes), but no shell is used. Port 0 means any free port. Placeholders:
//!
//! ```text
//! {ip} {port} {addr}   address of the tracker in this run; {addr} is IP:PORT
//! {addr4} {addr6}      the same port on 127.0.0.1 and on ::1
//! {hashes}             a file with the info-hashes of the load, one in hex per line
//! {dir}                scratch folder of this run and working folder; all users may read it
//! {template:PATH}      a copy of the file PATH in {dir}, with its placeholders replaced
//! {config}             a copy of the settings that this program has for a known tracker
//! ```

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use skep::sys::clock::Clock;

use crate::endpoint::Endpoint;
use crate::plan::{Families, Plan, Protocol};
use crate::population::info_hash;
use crate::process::{
    Scratch, Server, ServerError, accepts, answers_connect, free_port, takes_connections,
};
use crate::sources::Targets;

/// A tracker that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contestant {
    /// Its name in tables.
    pub(crate) name: String,
    /// Its command, with placeholders.
    pub(crate) words: Vec<String>,
    /// The address at which it has to respond.
    pub(crate) address: SocketAddr,
    /// The text whose copy replaces `{config}`.
    pub(crate) config: &'static str,
}

/// A text that is not a contestant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ContestantError {
    /// A part is missing.
    #[error("expected: NAME=COMMAND@IP:PORT")]
    Incomplete,
    /// The last part.
    #[error("{0:?} is not IP:PORT; expected: NAME=COMMAND@IP:PORT")]
    Address(String),
    /// In the command.
    #[error("a quote is not closed")]
    OpenQuote,
}

/// Why a contestant cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContestantStartError {
    /// No folder, or no port, for it.
    #[error("cannot prepare {name}: {error}")]
    Prepare {
        /// Its name.
        name: String,
        /// What the kernel returned.
        error: io::Error,
    },
    /// A file for it cannot be read or written.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// The process could not be started.
    #[error(transparent)]
    Process(ServerError),
    /// The process does not serve.
    #[error("{name}: {error}")]
    Serve {
        /// Its name.
        name: String,
        /// Why not.
        error: ServerError,
    },
}

/// A file that a placeholder names cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {error}")]
pub(crate) struct FillError {
    file: String,
    error: io::Error,
}

impl FromStr for Contestant {
    type Err = ContestantError;

    fn from_str(text: &str) -> Result<Self, ContestantError> {
        let (name, rest) = text.split_once('=').ok_or(ContestantError::Incomplete)?;
        let (command, address) = rest.rsplit_once('@').ok_or(ContestantError::Incomplete)?;
        let address = address.parse().map_err(|_| ContestantError::Address(address.to_owned()))?;
        let words = split(command)?;
        if name.is_empty() || words.is_empty() {
            return Err(ContestantError::Incomplete);
        }
        Ok(Self { name: name.to_owned(), words, address, config: "" })
    }
}

/// A contestant that runs and responds.
pub(crate) struct Started {
    /// Its process.
    pub(crate) server: Server,
    /// Addresses at which it responds.
    pub(crate) targets: Targets,
    /// Kept as long as the process may read it.
    _scratch: Scratch,
}

impl Started {
    /// The endpoint for TCP; `None` for UDP.
    pub(crate) fn endpoint(&self, protocol: Protocol) -> Option<Endpoint> {
        let address = self.targets.v4.or(self.targets.v6)?;
        (protocol != Protocol::Udp).then(|| Endpoint::local(address, protocol))
    }
}

impl Contestant {
    /// One of the project's own programs on any free loopback port.
    pub(crate) fn own(name: &str, program: &Path, arguments: &[&str]) -> Self {
        let mut words = vec![program.display().to_string()];
        words.extend(arguments.iter().map(|it| (*it).to_owned()));
        Self {
            name: name.to_owned(),
            words,
            address: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            config: "",
        }
    }

    /// The command as in results: without folders of this host, with placeholders not replaced.
    pub(crate) fn command(&self) -> String {
        let without_folders = |word: &String| {
            let name = Path::new(word).file_name().and_then(|it| it.to_str());
            match word.strip_prefix("{template:") {
                Some(_) => format!("{{template:{}", name.unwrap_or(word)),
                None if word.starts_with('/') => name.unwrap_or(word).to_owned(),
                None => word.clone(),
            }
        };
        self.words.iter().map(without_folders).collect::<Vec<_>>().join(" ")
    }

    /// Starts it on one CPU. Waits until it responds to connects or accepts connections and, if it
    /// has a list of hashes, until it accepts the last of them (tested over UDP, whatever the
    /// protocol of the load).
    ///
    /// # Errors
    /// One sentence with the cause and its last output.
    pub(crate) fn start(
        &self,
        plan: &Plan,
        cpu: Option<usize>,
        clock: &Clock,
    ) -> Result<Started, ContestantStartError> {
        let scratch = Scratch::new().map_err(|error| self.unprepared(error))?;
        let address = self.address_for(plan.families).map_err(|error| self.unprepared(error))?;
        let fill = Fill { address, plan, folder: scratch.path(), config: self.config };
        let words: Result<Vec<String>, FillError> =
            self.words.iter().map(|it| fill.fill(it)).collect();
        let mut server = Server::start(&words?, cpu, scratch.path(), &self.name)
            .map_err(ContestantStartError::Process)?;
        let failed = |error| ContestantStartError::Serve { name: self.name.clone(), error };
        let serves = || match plan.transport.protocol {
            Protocol::Udp => answers_connect(address),
            Protocol::Http | Protocol::Ws => takes_connections(address),
        };
        server.wait_for(clock, serves).map_err(failed)?;
        if self.words.iter().any(|it| it.contains("{hashes}")) {
            let last = info_hash(plan.seed, plan.torrents - 1);
            server.wait_for(clock, || accepts(address, last)).map_err(failed)?;
        }
        let mut targets = Targets { v4: None, v6: None };
        *(if address.is_ipv4() { &mut targets.v4 } else { &mut targets.v6 }) = Some(address);
        Ok(Started { server, targets, _scratch: scratch })
    }

    /// Starts a program that chooses its own ports and prints them in a ready line.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(crate) fn start_by_ready_line(
        &self,
        cpu: Option<usize>,
        clock: &Clock,
    ) -> Result<Started, ContestantStartError> {
        let scratch = Scratch::new().map_err(|error| self.unprepared(error))?;
        let mut server = Server::start(&self.words, cpu, scratch.path(), &self.name)
            .map_err(ContestantStartError::Process)?;
        let failed = |error| ContestantStartError::Serve { name: self.name.clone(), error };
        let line = server.ready_line(clock).map_err(failed)?;
        Ok(Started { server, targets: targets_in(&line), _scratch: scratch })
    }

    fn unprepared(&self, error: io::Error) -> ContestantStartError {
        ContestantStartError::Prepare { name: self.name.clone(), error }
    }

    /// The address of a run. On loopback, it follows the family of the plan.
    fn address_for(&self, families: Families) -> io::Result<SocketAddr> {
        let ip: IpAddr = match (self.address.ip(), families) {
            (ip, Families::V6) if ip == Ipv4Addr::LOCALHOST => Ipv6Addr::LOCALHOST.into(),
            (ip, Families::V4) if ip == Ipv6Addr::LOCALHOST => Ipv4Addr::LOCALHOST.into(),
            (ip, _) => ip,
        };
        let port = if self.address.port() == 0 { free_port(ip)? } else { self.address.port() };
        Ok(SocketAddr::new(ip, port))
    }
}

/// The skep binary next to this program, if there is one.
pub(crate) fn sibling_skep() -> Option<PathBuf> {
    let path = own_program().parent()?.join("skep");
    path.is_file().then_some(path)
}

/// The path of this program.
pub(crate) fn own_program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"))
}

/// The first UDP address of each family in a ready line: `ready udp=127.0.0.1:40001 udp=...`.
pub(crate) fn targets_in(ready_line: &str) -> Targets {
    let addresses = ready_line.split(' ').filter_map(|it| it.strip_prefix("udp=")?.parse().ok());
    let addresses: Vec<SocketAddr> = addresses.collect();
    let first = |v6| addresses.iter().copied().find(|it| it.is_ipv6() == v6);
    Targets { v4: first(false), v6: first(true) }
}

/// Splits a command into words; quotes keep spaces together.
fn split(command: &str) -> Result<Vec<String>, ContestantError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in command.chars() {
        match (quote, character) {
            (Some(open), mark) if mark == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, space) if space.is_whitespace() => words.extend(word.take()),
            (_, letter) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    if quote.is_some() { Err(ContestantError::OpenQuote) } else { Ok(words) }
}

/// The values of the placeholders in one run.
struct Fill<'a> {
    address: SocketAddr,
    plan: &'a Plan,
    folder: &'a Path,
    config: &'static str,
}

impl Fill<'_> {
    /// A text with its placeholders replaced. Other text in braces is unchanged.
    fn fill(&self, text: &str) -> Result<String, FillError> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let value = match after.split_once('}') {
                Some((name, tail)) => self.value(name)?.map(|value| (value, tail)),
                None => None,
            };
            out.push_str(before);
            if let Some((value, tail)) = value {
                out.push_str(&value);
                rest = tail;
            } else {
                out.push('{');
                rest = after;
            }
        }
        Ok(out + rest)
    }

    fn value(&self, name: &str) -> Result<Option<String>, FillError> {
        let port = self.address.port();
        let path = |it: &Path| it.display().to_string();
        Ok(Some(match name {
            "ip" => self.address.ip().to_string(),
            "port" => port.to_string(),
            "addr" => self.address.to_string(),
            "addr4" => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port).to_string(),
            "addr6" => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port).to_string(),
            "dir" => path(self.folder),
            "config" => path(&self.write_config()?),
            "hashes" => path(
                &self
                    .write_hashes()
                    .map_err(|error| FillError { file: "info-hashes".to_owned(), error })?,
            ),
            _ => match name.strip_prefix("template:") {
                Some(template) => path(&self.copy(Path::new(template))?),
                None => return Ok(None),
            },
        }))
    }

    fn write_config(&self) -> Result<PathBuf, FillError> {
        let text = self.fill(self.config)?;
        let file = self.folder.join("config.toml");
        fs::write(&file, text)
            .map_err(|error| FillError { file: file.display().to_string(), error })?;
        Ok(file)
    }

    fn write_hashes(&self) -> io::Result<PathBuf> {
        let mut text = String::with_capacity(self.plan.torrents as usize * 41);
        for torrent in 0..self.plan.torrents {
            for byte in info_hash(self.plan.seed, torrent).0 {
                // Writing to a string cannot fail.
                let _ = write!(text, "{byte:02x}");
            }
            text.push('\n');
        }
        let file = self.folder.join("hashes");
        fs::write(&file, text)?;
        Ok(file)
    }

    fn copy(&self, template: &Path) -> Result<PathBuf, FillError> {
        let failed = |error| FillError { file: format!("template {}", template.display()), error };
        let text = self.fill(&fs::read_to_string(template).map_err(failed)?)?;
        let file = self.folder.join(template.file_name().unwrap_or(template.as_os_str()));
        fs::write(&file, text).map_err(failed)?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Profile;

    #[test]
    fn contestants_have_a_name_a_command_and_an_address() {
        let contestant: Contestant = "ot=opentracker -i {ip} -w 'a b'@127.0.0.1:0".parse().unwrap();
        assert_eq!(contestant.name, "ot");
        assert_eq!(contestant.words, ["opentracker", "-i", "{ip}", "-w", "a b"]);
        assert_eq!(contestant.address, "127.0.0.1:0".parse().unwrap());
        for text in ["x", "=a@127.0.0.1:1", "n=@127.0.0.1:1", "n=a@host", "n='a@127.0.0.1:1"] {
            assert!(text.parse::<Contestant>().is_err(), "{text}");
        }
    }

    #[test]
    fn ready_lines_name_both_families() {
        let targets =
            targets_in("ready udp=127.0.0.1:5 udp=[::1]:6 tcp=127.0.0.1:7 io=mmsg workers=1");
        assert_eq!((targets.v4, targets.v6), ("127.0.0.1:5".parse().ok(), "[::1]:6".parse().ok()));
    }

    #[test]
    fn commands_are_named_without_folders() {
        let contestant: Contestant =
            "a=/opt/bin/aquatic_udp -c {template:/etc/aquatic.toml}@127.0.0.1:3".parse().unwrap();
        assert_eq!(contestant.command(), "aquatic_udp -c {template:aquatic.toml}");
    }

    #[test]
    fn placeholders_are_filled_in_templates_too() {
        let scratch = Scratch::new().unwrap();
        let other = Scratch::new().unwrap();
        let template = other.path().join("t.toml");
        fs::write(&template, "listen = \"{addr6}\" { x }\n").unwrap();
        let plan = Plan { torrents: 3, ..Profile::Smoke.plan() };
        let address = "127.0.0.1:7".parse().unwrap();
        let fill = Fill { address, plan: &plan, folder: scratch.path(), config: "a = \"{addr}\"" };
        assert_eq!(fill.fill("-i {ip} -P {port} {}").unwrap(), "-i 127.0.0.1 -P 7 {}");
        let copy = fill.fill(&format!("{{template:{}}}", template.display())).unwrap();
        assert_eq!(fs::read_to_string(copy).unwrap(), "listen = \"[::1]:7\" { x }\n");
        let config = fs::read_to_string(fill.fill("{config}").unwrap()).unwrap();
        assert_eq!(config, "a = \"127.0.0.1:7\"");
        let hashes = fs::read_to_string(fill.fill("{hashes}").unwrap()).unwrap();
        assert!(hashes.lines().count() == 3 && hashes.lines().all(|it| it.len() == 40));
        assert!(fill.fill("{template:/nonexistent}").is_err());
    }
}
