//! Where settings come from: a file, over it the environment, over both the flags.
//!
//! Every layer is checked for itself first, so that an error names the layer it stands in; what
//! only the whole can show (bounds, settings that depend on each other) is then traced back to
//! the layer that set the culprit.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::{CheckError, Config, ConfigError, Setting, settings};

/// One setting's value as text: what a variable or a flag says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Who says so, for errors: the variable's or flag's name.
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
pub struct Source {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Variables of the environment: all of them, or those [`Source::is_about`] picks.
    pub environment: Vec<(String, String)>,
    /// What flags set.
    pub flags: Vec<Assignment>,
}

/// Settings so far, and where each that is no default was set.
#[derive(Default)]
struct Layers {
    table: toml::Table,
    places: BTreeMap<(String, String), String>,
}

impl Source {
    /// What variables that set a setting start with: `SKEP__SECTION__KEY`.
    pub const VARIABLE_PREFIX: &str = "SKEP__";

    /// What all variables of ours start with. Those that no setting is named after (Kubernetes sets
    /// `SKEP_PORT` and its like for a service of that name) are ignored.
    const COMMON_PREFIX: &str = "SKEP_";

    /// Whether a variable of the environment is to be looked at: one that sets a setting, or looks
    /// as if it was meant to.
    pub fn is_about(variable: &str) -> bool {
        variable.starts_with(Self::COMMON_PREFIX)
    }

    /// What may have been meant otherwise than the settings say, a sentence each with its remedy:
    /// settings of `config`, and variables that are ignored for want of a second underscore.
    pub fn warnings(&self, config: &Config) -> Vec<String> {
        let names = self.environment.iter().map(|it| it.0.as_str());
        let ignored = names.filter(|it| !it.starts_with(Self::VARIABLE_PREFIX));
        let misspelt = |name| Some((name, variable_meant_by(name)?));
        let mut warnings: Vec<_> = ignored
            .filter_map(misspelt)
            .map(|(name, meant)| {
                format!("the variable {name} is ignored; remedy: call it {meant}, or remove it")
            })
            .collect();
        warnings.extend(config.warnings());
        warnings
    }

    /// Reads, merges and checks the settings. The file may be a pipe, whose end is waited for.
    ///
    /// # Errors
    /// [`ConfigError`] with the first thing that is wrong.
    pub fn load(&self) -> Result<Config, ConfigError> {
        self.load_by(|path| std::fs::read_to_string(path))
    }

    /// The same on reload, when nothing is waited for. A pipe that has been read is refused: it
    /// would be an empty file, and all settings those of the default.
    ///
    /// # Errors
    /// As above.
    pub fn load_again(&self) -> Result<Config, ConfigError> {
        self.load_by(read_again)
    }

    fn load_by(&self, read: fn(&Path) -> io::Result<String>) -> Result<Config, ConfigError> {
        let mut layers = Layers::default();
        if let Some(path) = &self.file {
            let text = read(path)
                .map_err(|error| ConfigError::at(path.display().to_string(), error.to_string()))?;
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
    /// Reads and checks a file's text alone.
    ///
    /// # Errors
    /// [`ConfigError`] with the first thing that is wrong.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let mut layers = Layers::default();
        layers.add_file(Path::new("skep.toml"), text)?;
        layers.finish()
    }
}

/// Reads a file that can be read any number of times.
fn read_again(path: &Path) -> io::Result<String> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file and can be read only once"));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// Reads a variable's name.
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
        let about = |problem: String| ConfigError {
            place: assignment.place.clone(),
            setting: Some(format!("{}.{}", assignment.section, assignment.key)),
            problem,
            allowed: allowed(&assignment.section, &assignment.key),
        };
        let value = typed(assignment).map_err(about)?;
        let inner = toml::Table::from_iter([(assignment.key.clone(), value.clone())]);
        let alone = toml::Table::from_iter([(assignment.section.clone(), inner.into())]);
        alone.try_into::<Config>().map_err(|error| about(error.message().to_owned()))?;
        let empty = || toml::Table::new().into();
        let section = self.table.entry(assignment.section.clone()).or_insert_with(empty);
        if let Some(section) = section.as_table_mut() {
            section.insert(assignment.key.clone(), value);
        }
        self.places
            .insert((assignment.section.clone(), assignment.key.clone()), assignment.place.clone());
        Ok(())
    }

    /// Checks the whole.
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
                allowed: allowed(section, key),
            }
        })?;
        Ok(config)
    }
}

/// Gives a text the type that its setting has by default.
fn typed(assignment: &Assignment) -> Result<toml::Value, String> {
    let defaults = toml::Table::try_from(Config::default()).map_err(|error| error.to_string())?;
    let default =
        defaults.get(&assignment.section).and_then(|section| section.get(&assignment.key));
    let text = assignment.text.trim();
    Ok(match default {
        Some(toml::Value::Integer(_)) => {
            let number: Result<i64, _> = text.parse();
            number.map_err(|_| format!("{text:?} is not a whole number"))?.into()
        }
        Some(toml::Value::Boolean(_)) => {
            let truth: Result<bool, _> = text.to_ascii_lowercase().parse();
            truth.map_err(|_| format!("{text:?} is neither true nor false"))?.into()
        }
        Some(toml::Value::Array(_)) => toml::Value::Array(items(text)),
        _ => text.into(),
    })
}

/// The items of a list: as TOML writes them (`["a", "b"]`, `[]`), else separated by commas.
fn items(text: &str) -> Vec<toml::Value> {
    // An IPv6 address may begin with a bracket as well, and is not TOML then.
    if let Ok(toml::Value::Array(items)) = text.parse() {
        return items;
    }
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items.map(toml::Value::from).collect()
}

/// The variable that sets a setting.
fn variable(setting: &Setting) -> String {
    let (prefix, section, key) = (Source::VARIABLE_PREFIX, setting.section, setting.key);
    format!("{prefix}{section}__{key}").to_ascii_uppercase()
}

/// The variable that was meant by `name`, if that has as many underscores as it should have nowhere
/// but between its words.
fn variable_meant_by(name: &str) -> Option<String> {
    let words = |name: &str| name.to_ascii_uppercase().replace("__", "_");
    let all = settings();
    let mut variables = all.iter().map(variable);
    variables.find(|it| it != name && words(it) == words(name))
}

/// An error at an offset of a file, with the setting that stands there.
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
