//! Sources of settings: a file, overridden by the environment, overridden by flags.
//!
//! Each layer is checked on its own first, so that an error names its layer. Faults that only the
//! whole shows (bounds, settings that depend on each other) are then traced back to the layer that
//! set the value.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::values::ANY_STRING;
use super::{CheckError, Config, ConfigError, Setting, settings};

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

/// The merged settings, and the place that set each one that is not a default.
#[derive(Default)]
struct Layers {
    table: toml::Table,
    places: BTreeMap<(String, String), String>,
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

    /// Probable mistakes, one sentence each with a remedy: settings of `config`, and variables that
    /// are ignored because they lack a second underscore.
    pub fn warnings(&self, config: &Config) -> Vec<String> {
        let names = self.environment.iter().map(|it| it.0.as_str());
        let ignored = names.filter(|it| !it.starts_with(Self::VARIABLE_PREFIX));
        let misspelt = |name| Some((name, variable_meant_by(name)?));
        let mut warnings: Vec<_> = ignored
            .filter_map(misspelt)
            .map(|(name, meant)| {
                format!("variable ignored: {name}; remedy: rename it to {meant}, or remove it")
            })
            .collect();
        warnings.extend(config.warnings());
        warnings
    }

    /// Reads, merges and checks the settings. The file may be a pipe; it is read to its end.
    ///
    /// # Errors
    /// [`ConfigError`] with the first fault.
    pub fn load(&self) -> Result<Config, ConfigError> {
        self.load_by(|path| std::fs::read_to_string(path))
    }

    /// As [`Self::load`], for a reload, without blocking. A pipe that has been read is refused: it
    /// would be an empty file, and every setting would get its default.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_again(&self) -> Result<Config, ConfigError> {
        self.load_by(read_again)
    }

    fn load_by(&self, read: fn(&Path) -> io::Result<String>) -> Result<Config, ConfigError> {
        let mut layers = Layers::default();
        if let Some(path) = &self.file {
            let text = read(path).map_err(|error| {
                let path = path.display();
                let problem = format!(
                    "cannot read the configuration file {path}: {error}; remedy: name with \
                     --config a file that skep's user can read"
                );
                ConfigError::at("", problem)
            })?;
            layers.add_file(path, &text)?;
        }
        for (variable, text) in &self.environment {
            let Some(name) = variable.strip_prefix(Self::VARIABLE_PREFIX) else { continue };
            layers.assign(&assignment(variable, name, text)?)?;
        }
        for flag in &self.flags {
            layers.assign(flag)?;
        }
        layers.finish()
    }
}

impl Config {
    /// Reads and checks the text of a file, without other sources.
    ///
    /// # Errors
    /// [`ConfigError`] with the first fault.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let mut layers = Layers::default();
        layers.add_file(Path::new("skep.toml"), text)?;
        layers.finish()
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

/// Parses a variable's name.
fn assignment(variable: &str, name: &str, text: &str) -> Result<Assignment, ConfigError> {
    let unknown = || {
        let meant = variable_meant_by(variable).map(|it| format!("; did you mean {it}?"));
        let meant = meant.unwrap_or_default();
        ConfigError::at(variable, format!("no such setting{meant}; `skep config` prints them all"))
    };
    let (section, key) = name.split_once("__").ok_or_else(unknown)?;
    let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
    let known = settings().iter().any(|it| it.section == section && it.key == key);
    let (place, text) = (variable.to_owned(), text.to_owned());
    if known { Ok(Assignment { place, section, key, text }) } else { Err(unknown()) }
}

impl Layers {
    /// Adds a file's settings.
    fn add_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let at = |offset| format!("{}:{}", path.display(), line_and_column(text, offset));
        let syntax = |error: toml::de::Error| {
            ConfigError::at(at(error.span().map_or(0, |it| it.start)), error.message())
        };
        let tree = DeTable::parse(text).map_err(syntax)?.into_inner();
        if let Err(error) = toml::from_str::<Config>(text) {
            let offset = error.span().map_or(0, |it| it.start);
            return Err(refused(at(offset), &tree, offset, error.message()));
        }
        for (section, settings) in &tree {
            for key in settings.get_ref().as_table().into_iter().flatten().map(|(key, _)| key) {
                let setting = (section.get_ref().to_string(), key.get_ref().to_string());
                self.places.insert(setting, at(key.span().start));
            }
        }
        self.table = toml::from_str(text).map_err(syntax)?;
        Ok(())
    }

    /// Sets one setting.
    fn assign(&mut self, assignment: &Assignment) -> Result<(), ConfigError> {
        let value = assignment.typed()?;
        let inner = toml::Table::from_iter([(assignment.key.clone(), value.clone())]);
        let alone = toml::Table::from_iter([(assignment.section.clone(), inner.into())]);
        alone.try_into::<Config>().map_err(|error| assignment.error(error.message().to_owned()))?;
        let empty = || toml::Table::new().into();
        let section = self.table.entry(assignment.section.clone()).or_insert_with(empty);
        if let Some(section) = section.as_table_mut() {
            section.insert(assignment.key.clone(), value);
        }
        self.places
            .insert((assignment.section.clone(), assignment.key.clone()), assignment.place.clone());
        Ok(())
    }

    /// Checks the merged settings.
    fn finish(self) -> Result<Config, ConfigError> {
        let mut config: Config =
            self.table.try_into().map_err(|error| ConfigError::at("", error.message()))?;
        config.unmap_addresses();
        config.check().map_err(|CheckError { section, key, others, problem }| {
            let mut settings = std::iter::once((section, key)).chain(others.iter().copied());
            let place = settings.find_map(|it| self.places.get(&(it.0.into(), it.1.into())));
            ConfigError {
                place: place.cloned().unwrap_or_default(),
                setting: Some(format!("{section}.{key}")),
                problem,
                // The value has the right type already.
                allowed: allowed(section, key).filter(|allowed| allowed != ANY_STRING),
            }
        })?;
        Ok(config)
    }
}

impl Assignment {
    /// The text as a value of the type of the setting's default.
    fn typed(&self) -> Result<toml::Value, ConfigError> {
        let defaults = toml::Table::try_from(Config::default())
            .map_err(|error| self.error(error.to_string()))?;
        let default = defaults.get(&self.section).and_then(|section| section.get(&self.key));
        let text = self.text.trim();
        Ok(match default {
            Some(toml::Value::Integer(_)) => {
                let number: Result<i64, _> = text.parse();
                number.map_err(|_| self.error(format!("{text:?} is not a whole number")))?.into()
            }
            Some(toml::Value::Boolean(_)) => {
                let truth: Result<bool, _> = text.to_ascii_lowercase().parse();
                truth.map_err(|_| self.error(format!("{text:?} is neither true nor false")))?.into()
            }
            Some(toml::Value::Array(_)) => toml::Value::Array(items(text)),
            _ => text.into(),
        })
    }

    /// A problem with the assigned value.
    fn error(&self, problem: String) -> ConfigError {
        ConfigError {
            place: self.place.clone(),
            setting: Some(format!("{}.{}", self.section, self.key)),
            problem,
            allowed: allowed(&self.section, &self.key),
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

/// The variable that `name` stands for, if `name` only has the wrong number of underscores between
/// its words.
fn variable_meant_by(name: &str) -> Option<String> {
    let words = |name: &str| name.to_ascii_uppercase().replace("__", "_");
    let all = settings();
    let mut variables = all.iter().map(variable);
    variables.find(|it| it != name && words(it) == words(name))
}

/// An error at an offset of a file, with the setting at that offset.
fn refused(place: String, tree: &DeTable<'_>, offset: usize, problem: &str) -> ConfigError {
    for (section, inner) in tree {
        let section = section.get_ref();
        for (key, value) in inner.get_ref().as_table().into_iter().flatten() {
            if !key.span().contains(&offset) && !value.span().contains(&offset) {
                continue;
            }
            let setting = Some(format!("{section}.{}", key.get_ref()));
            let allowed = allowed(section, key.get_ref());
            return ConfigError { place, setting, problem: problem.to_owned(), allowed };
        }
    }
    ConfigError::at(place, problem)
}

/// What a setting allows, if it exists.
fn allowed(section: &str, key: &str) -> Option<String> {
    let is_it = |it: &Setting| it.section == section && it.key == key;
    settings().into_iter().find(is_it).map(|it| it.allowed)
}

/// Line and column of an offset, both from 1, columns in characters.
fn line_and_column(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("{line}:{column}")
}
