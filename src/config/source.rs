//! Sources of settings: a file, overridden by the environment, overridden by flags.
//!
//! Everything is judged in one run: each value by its layer, and then what only the whole shows
//! (settings that contradict each other), which is traced back to the layer that set the value. A
//! setting with a fault keeps its default meanwhile, and is left out of further judgements.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::read::ValueError;
use super::relations::Conflict;
use super::similar::similar;
use super::values::ANY_STRING;
use super::{
    Config, ConfigError, ConfigFinding, ConfigPlace, SECTIONS, Setting, set, setting, settings,
};

/// One setting's value as text, from a variable or a flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The name of the variable or flag, for errors.
    pub place: String,
    /// The section.
    pub section: String,
    /// The key.
    pub key: String,
    /// The value; a list's items are separated by commas.
    pub text: String,
}

/// Where to read the settings, now and on reload.
#[derive(Clone, Debug, Default)]
pub struct SettingsSource {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Variables of the environment: all of them, or those that [`SettingsSource::is_about`]
    /// selects.
    pub environment: Vec<(String, String)>,
    /// Settings from flags.
    pub flags: Vec<Assignment>,
}

/// The merged settings, with everything that is wrong with them, and where each comes from.
#[derive(Clone, Debug, Default)]
pub struct ConfigReport {
    /// The settings. One with a fault has its default, or the value of an earlier source.
    pub config: Config,
    /// Faults and warnings, in the order of the sources.
    pub findings: Vec<ConfigFinding>,
    /// The place of each setting that is not a default, by its name.
    places: BTreeMap<String, ConfigPlace>,
    /// Settings with a fault.
    faulty: BTreeSet<String>,
    /// Whether the settings themselves have a fault, not what they name.
    is_invalid: bool,
}

impl SettingsSource {
    /// Prefix of variables that set a setting: `SKEP__SECTION__KEY`.
    pub const VARIABLE_PREFIX: &str = "SKEP__";

    /// Prefix of all of skep's variables. Those that do not name a setting are ignored: Kubernetes
    /// sets `SKEP_PORT` and others for a service of that name.
    const COMMON_PREFIX: &str = "SKEP_";

    /// Whether a variable of the environment is read: one that sets a setting, or looks like an
    /// attempt to.
    pub fn is_about(variable: &str) -> bool {
        variable.starts_with(Self::COMMON_PREFIX)
    }

    /// Reads, merges and checks the settings. The file may be a pipe; it is read to its end.
    ///
    /// # Errors
    /// [`ConfigError`] with all faults.
    pub fn load(&self) -> Result<Config, ConfigError> {
        self.judge().into_config()
    }

    /// As [`Self::load`], for a reload, without blocking. A pipe that has been read is refused: it
    /// would be an empty file, and every setting would get its default.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_again(&self) -> Result<Config, ConfigError> {
        self.judge_by(read_again).into_config()
    }

    /// Reads, merges and checks the settings, and collects all faults and warnings. The file may be
    /// a pipe; it is read to its end.
    pub fn judge(&self) -> ConfigReport {
        self.judge_by(|path| std::fs::read_to_string(path))
    }

    fn judge_by(&self, read: fn(&Path) -> io::Result<String>) -> ConfigReport {
        let mut report = ConfigReport::default();
        if let Some(path) = &self.file {
            match read(path) {
                Ok(text) => report.add_file(path, &text),
                Err(error) => {
                    let path = path.display();
                    report.findings.push(ConfigFinding::fault(format!(
                        "cannot read the configuration file {path}: {error}; remedy: name with \
                         --config a file that skep's user can read"
                    )));
                }
            }
        }
        for (variable, text) in &self.environment {
            match variable.strip_prefix(Self::VARIABLE_PREFIX) {
                Some(name) => report.add_variable(variable, name, text),
                None => report.findings.extend(ignored(variable)),
            }
        }
        for flag in &self.flags {
            report.assign(flag);
        }
        report.finish();
        report
    }
}

impl Config {
    /// Reads and checks the text of a file, without other sources.
    ///
    /// # Errors
    /// [`ConfigError`] with all faults.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let mut report = ConfigReport::default();
        report.add_file(Path::new("skep.toml"), text);
        report.finish();
        report.into_config()
    }
}

/// Reads a file that can be read repeatedly.
fn read_again(path: &Path) -> io::Result<String> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file and can be read only once"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

impl ConfigReport {
    /// Whether the settings themselves have no fault, whatever the files are like that they name.
    pub fn are_settings_valid(&self) -> bool {
        !self.is_invalid
    }

    /// Whether a setting, as `section.key`, has a fault.
    pub fn is_faulty(&self, setting: &str) -> bool {
        self.faulty.contains(setting)
    }

    /// Adds what was found later, for example in a file that a setting names. A finding without a
    /// place gets that of its setting, and its value.
    pub fn add(&mut self, mut finding: ConfigFinding) {
        if let Some(key) = finding.key.clone() {
            if finding.place == ConfigPlace::Default {
                finding.place = self.places.get(&key).cloned().unwrap_or_default();
            }
            if finding.value.is_none() {
                finding.value = self.value_of(&key);
            }
            if finding.is_fault() {
                self.faulty.insert(key);
            }
        }
        self.findings.push(finding);
    }

    /// The settings, or all faults.
    ///
    /// # Errors
    /// [`ConfigError`] with all faults, if there is one.
    pub fn into_config(self) -> Result<Config, ConfigError> {
        let faults: Vec<_> = self.findings.into_iter().filter(ConfigFinding::is_fault).collect();
        if faults.is_empty() { Ok(self.config) } else { Err(ConfigError { faults }) }
    }

    /// The value of a setting, as text; `None` for a secret.
    fn value_of(&self, name: &str) -> Option<String> {
        let (section, key) = name.split_once('.').filter(|_| !is_secret(name))?;
        let all = toml::Table::try_from(&self.config).ok()?;
        all.get(section)?.get(key).map(super::read::bare)
    }

    /// Adds a file's settings. Findings are in the order of its lines.
    fn add_file(&mut self, path: &Path, text: &str) {
        let first = self.findings.len();
        self.add_settings(path, text);
        self.findings[first..].sort_by_key(|it| match it.place {
            ConfigPlace::File { line, column, .. } => (line, column),
            _ => (0, 0),
        });
    }

    fn add_settings(&mut self, path: &Path, text: &str) {
        let at = |offset| place_in(path, text, offset);
        let (tree, errors) = DeTable::parse_recoverable(text);
        let mut broken_lines = Vec::new();
        for error in errors {
            let place = at(error.span().map_or(0, |it| it.start));
            // A line that cannot be read may cause further errors behind it.
            if let ConfigPlace::File { line, .. } = place
                && !broken_lines.contains(&line)
            {
                broken_lines.push(line);
                self.findings.push(ConfigFinding::fault(error.message()).at(place));
            }
        }
        let is_broken = |place: &ConfigPlace| match place {
            ConfigPlace::File { line, .. } => broken_lines.contains(line),
            _ => false,
        };
        for (section, inner) in tree.into_inner() {
            let place = at(section.span().start);
            let name = section.get_ref().as_ref();
            let value = inner.into_inner();
            let DeValue::Table(table) = value else {
                if !is_broken(&place) {
                    self.findings.push(outside(name).at(place));
                }
                continue;
            };
            if !SECTIONS.iter().any(|it| it.0 == name) {
                self.findings.push(unknown_section(name).at(place));
                continue;
            }
            for (key, value) in table {
                let (key_place, value_place) = (at(key.span().start), at(value.span().start));
                if !is_broken(&key_place) {
                    let places = (key_place, value_place);
                    self.add_value((name, key.get_ref()), value, places, &at);
                }
            }
        }
    }

    /// Adds a value of a file.
    fn add_value(
        &mut self,
        (section, key): (&str, &str),
        value: Spanned<DeValue<'_>>,
        (key_place, value_place): (ConfigPlace, ConfigPlace),
        at: &dyn Fn(usize) -> ConfigPlace,
    ) {
        let items: Vec<_> = match value.get_ref() {
            DeValue::Array(items) => items.iter().map(|it| it.span().start).collect(),
            _ => Vec::new(),
        };
        let Ok(value) = toml::Value::deserialize(ValueDeserializer::from(value)) else {
            let fault = ConfigFinding::fault("is not a value of TOML");
            self.findings.push(fault.about(format!("{section}.{key}")).at(value_place));
            return;
        };
        match set(&mut self.config, (section, key), &value, false) {
            None => self.findings.push(unknown_key(section, key).at(key_place)),
            Some(Ok(())) => {
                self.places.insert(format!("{section}.{key}"), key_place);
            }
            Some(Err(errors)) => {
                for error in errors {
                    let item = error.item.and_then(|it| items.get(it));
                    let place = item.map_or_else(|| value_place.clone(), |it| at(*it));
                    self.refuse((section, key), error, place);
                }
            }
        }
    }

    /// Adds a variable.
    fn add_variable(&mut self, variable: &str, name: &str, text: &str) {
        let lower = name.to_ascii_lowercase();
        let (section, key) = lower.split_once("__").unwrap_or((&lower, ""));
        if setting(&format!("{section}.{key}")).is_none() {
            let fault = ConfigFinding {
                meant: variable_meant_by(variable),
                ..ConfigFinding::fault(
                    "no such setting; remedy: `skep config` prints every setting",
                )
            };
            return self.findings.push(fault.at(ConfigPlace::Named(variable.to_owned())));
        }
        let (place, text) = (variable.to_owned(), text.to_owned());
        let (section, key) = (section.to_owned(), key.to_owned());
        self.assign(&Assignment { place, section, key, text });
    }

    /// Sets one setting.
    fn assign(&mut self, assignment: &Assignment) {
        let Assignment { place, section, key, .. } = assignment;
        let place = ConfigPlace::Named(place.clone());
        let value = assignment.typed();
        match set(&mut self.config, (section, key), &value, true) {
            None => self.findings.push(unknown_key(section, key).at(place)),
            Some(Ok(())) => {
                self.places.insert(format!("{section}.{key}"), place);
            }
            Some(Err(errors)) => {
                errors
                    .into_iter()
                    .for_each(|error| self.refuse((section, key), error, place.clone()));
            }
        }
    }

    /// Adds a fault of one value.
    fn refuse(&mut self, (section, key): (&str, &str), error: ValueError, place: ConfigPlace) {
        let name = format!("{section}.{key}");
        let is_secret = is_secret(&name);
        let message = if is_secret { "is not a text in quotes".into() } else { error.message };
        let fault = ConfigFinding {
            value: Some(error.value).filter(|_| !is_secret),
            allowed: setting(&name).map(|it| it.allowed).filter(|it| it != ANY_STRING),
            meant: error.meant.filter(|_| !is_secret),
            ..ConfigFinding::fault(message)
        };
        self.findings.push(fault.about(&name).at(place));
        self.faulty.insert(name);
    }

    /// Checks the merged settings.
    fn finish(&mut self) {
        self.config.unmap_addresses();
        for conflict in self.config.conflicts() {
            let Conflict { section, key, others, problem } = conflict;
            let names = std::iter::once((section, key)).chain(others.iter().copied());
            let names: Vec<_> = names.map(|it| format!("{}.{}", it.0, it.1)).collect();
            if names.iter().any(|it| self.faulty.contains(it)) {
                continue;
            }
            let place = names.iter().find_map(|it| self.places.get(it));
            let place = place.cloned().unwrap_or_default();
            let allowed = setting(&names[0]).map(|it| it.allowed);
            let fault = ConfigFinding {
                value: self.value_of(&names[0]),
                // The value has the right type already.
                allowed: allowed.filter(|it| it != ANY_STRING),
                ..ConfigFinding::fault(problem)
            };
            self.findings.push(fault.about(&names[0]).at(place));
        }
        self.is_invalid = self.findings.iter().any(ConfigFinding::is_fault);
        for warning in self.config.warnings(&self.faulty) {
            self.add(warning);
        }
        self.warn_of_relative_paths();
    }

    /// Warns of paths in a file that depend on where skep is started. Those of a variable or a
    /// flag are relative to the shell's directory by custom.
    fn warn_of_relative_paths(&mut self) {
        for name in PATHS {
            let is_in_file = matches!(self.places.get(name), Some(ConfigPlace::File { .. }));
            let path = self.value_of(name).filter(|it| is_in_file && !it.is_empty());
            let Some(path) = path.map(PathBuf::from).filter(|it| it.is_relative()) else {
                continue;
            };
            let meant = match std::path::absolute(&path) {
                Ok(path) => format!("{path:?}"),
                Err(_) => "an absolute path".into(),
            };
            self.add(ConfigFinding::warning(format!(
                "is relative to the working directory, not to this file: here it means {meant}; \
                 remedy: write the absolute path"
            )).about(name));
        }
    }
}

/// Settings that are paths of files to read.
const PATHS: [&str; 17] = [
    "udp.key_file",
    "tls.certificate",
    "tls.key",
    "access.torrents_allow",
    "access.torrents_deny",
    "access.networks_allow",
    "access.networks_deny",
    "access.clients_allow",
    "access.clients_deny",
    "access.ports_deny",
    "cluster.secret_file",
    "cluster.credentials_file",
    "cluster.password_file",
    "cluster.nkey_file",
    "cluster.ca",
    "cluster.certificate",
    "cluster.key",
];

/// Whether the value of a setting must not be shown.
fn is_secret(name: &str) -> bool {
    name == "admin.token"
}

/// The fault of a section that does not exist.
fn unknown_section(name: &str) -> ConfigFinding {
    let meant = similar(name, SECTIONS.iter().map(|it| it.0)).map(|it| format!("[{it}]"));
    let fault = ConfigFinding::fault("no such section; remedy: `skep config` prints all sections");
    ConfigFinding { meant, ..fault }.about(name)
}

/// The fault of a name outside of any section.
fn outside(name: &str) -> ConfigFinding {
    let is_section = SECTIONS.iter().any(|it| it.0 == name);
    let fault = if is_section {
        format!("is a section, not a setting; remedy: write [{name}] on a line of its own")
    } else {
        "is outside of a section; remedy: write it below its section, as `skep config` does".into()
    };
    let elsewhere = sections_with(name);
    let meant = elsewhere.first().map(|it| format!("{name} below [{it}]"));
    ConfigFinding { meant: meant.filter(|_| !is_section), ..ConfigFinding::fault(fault) }
        .about(name)
}

/// The fault of a key that its section does not have.
fn unknown_key(section: &str, key: &str) -> ConfigFinding {
    let all = settings();
    let own = all.iter().filter(|it| it.section == section).map(|it| it.key);
    let elsewhere = sections_with(&key.to_ascii_lowercase());
    let meant = similar(key, own)
        .map(str::to_owned)
        .or_else(|| elsewhere.first().map(|it| format!("{key} below [{it}]")));
    let fault = ConfigFinding::fault("no such setting; remedy: `skep config` prints every setting");
    ConfigFinding { meant, ..fault }.about(format!("{section}.{key}"))
}

/// The sections that have a setting with this key.
fn sections_with(key: &str) -> Vec<&'static str> {
    settings().iter().filter(|it| it.key == key).map(|it| it.section).collect()
}

/// The warning about a variable that is ignored, if it looks like one that sets a setting.
fn ignored(variable: &str) -> Option<ConfigFinding> {
    let words = |name: &str| name.to_ascii_uppercase().replace("__", "_");
    let all = settings();
    let meant = all.iter().map(self::variable).find(|it| words(it) == words(variable))?;
    Some(ConfigFinding::warning(format!(
        "variable ignored: {variable}; remedy: rename it to {meant}, or remove it"
    )))
}

impl Assignment {
    /// The text as a value of the type of the setting's default, if it can be read as one.
    fn typed(&self) -> toml::Value {
        let defaults = toml::Table::try_from(Config::default()).unwrap_or_default();
        let default = defaults.get(&self.section).and_then(|section| section.get(&self.key));
        let text = self.text.trim();
        match default {
            Some(toml::Value::Integer(_)) => {
                text.parse::<i64>().map_or_else(|_| text.into(), toml::Value::from)
            }
            Some(toml::Value::Boolean(_)) => {
                let truth = text.to_ascii_lowercase().parse::<bool>();
                truth.map_or_else(|_| text.into(), toml::Value::from)
            }
            Some(toml::Value::Array(_)) => toml::Value::Array(items(text)),
            _ => text.into(),
        }
    }
}

/// The items of a list: in TOML notation (`["a", "b"]`, `[]`), else separated by commas.
fn items(text: &str) -> Vec<toml::Value> {
    // An IPv6 address may begin with a bracket as well. It is not TOML.
    if let Ok(toml::Value::Array(items)) = text.parse() {
        return items;
    }
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items.map(toml::Value::from).collect()
}

/// The variable that sets a setting.
fn variable(setting: &Setting) -> String {
    let (prefix, section, key) = (SettingsSource::VARIABLE_PREFIX, setting.section, setting.key);
    format!("{prefix}{section}__{key}").to_ascii_uppercase()
}

/// The variable that `name` probably stands for: one with other underscores, or a similar one.
fn variable_meant_by(name: &str) -> Option<String> {
    let words = |name: &str| name.to_ascii_uppercase().replace("__", "_");
    let all: Vec<_> = settings().iter().map(variable).collect();
    let same = all.iter().find(|it| *it != name && words(it) == words(name));
    same.cloned().or_else(|| {
        // The prefix is the same in all names, and must not make them similar.
        let bare = |name: &str| name[SettingsSource::VARIABLE_PREFIX.len()..].to_ascii_lowercase();
        let known: Vec<_> = all.iter().map(|it| bare(it)).collect();
        let found = similar(&bare(name), known.iter().map(String::as_str))?;
        all.iter().find(|it| bare(it) == found).cloned()
    })
}

/// The place of an offset of a file, line and column from 1, columns in characters.
fn place_in(path: &Path, text: &str, offset: usize) -> ConfigPlace {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    ConfigPlace::File { path: path.to_owned(), line, column }
}
