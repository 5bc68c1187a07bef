//! What is wrong in the configuration, or probably is: each with its place, its setting, the value,
//! and what to write instead.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ConfigSeverity {
    /// skep does not start.
    Fault,
    /// skep starts, but the setting is probably a mistake.
    Warning,
}

/// What a finding concerns besides its setting: `skep doctor` has checks of its own for these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConfigTopic {
    /// Nothing else.
    #[default]
    Setting,
    /// A certificate that clients refuse now: it has expired, or is not valid yet.
    CertificateRefused,
    /// A certificate that expires soon.
    CertificateExpires,
    /// Files of a certificate that cannot be read again after the start.
    CertificateRenewal,
    /// The state directory, or a file in it.
    StateDirectory,
}

/// Where a value comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConfigPlace {
    /// It is a default.
    #[default]
    Default,
    /// A file. Line and column count from 1, the column in characters; a column of 0 is unknown.
    File {
        /// The file's path.
        path: PathBuf,
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// A variable or a flag, by its name.
    Named(String),
}

impl fmt::Display for ConfigPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => Ok(()),
            Self::File { path, line, column: 0 } => write!(f, "{}:{line}", path.display()),
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Named(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong with the configuration, or probably is. Its text is for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFinding {
    /// How bad it is.
    pub severity: ConfigSeverity,
    /// What it concerns besides the setting.
    pub topic: ConfigTopic,
    /// Where the value comes from.
    pub place: ConfigPlace,
    /// The setting, as `section.key`, if the finding concerns one.
    pub key: Option<String>,
    /// The value, unless it is a secret: a string as it is, anything else in TOML.
    pub value: Option<String>,
    /// What is wrong. It quotes the value.
    pub message: String,
    /// What is allowed instead, if that can be named.
    pub allowed: Option<String>,
    /// What was probably meant.
    pub meant: Option<String>,
    /// What to do, if that is more than to write an allowed value.
    pub remedy: Option<String>,
}

impl ConfigFinding {
    /// A fault with this message. A remedy in the message, as other errors have it (`…; remedy:
    /// …`), becomes the finding's.
    pub fn fault(message: impl Into<String>) -> Self {
        let message = message.into();
        let (message, remedy) = match message.split_once("; remedy: ") {
            Some((message, remedy)) => (message.to_owned(), Some(remedy.to_owned())),
            None => (message, None),
        };
        let (severity, topic, place) =
            (ConfigSeverity::Fault, Default::default(), ConfigPlace::Default);
        let (key, value, allowed, meant) = (None, None, None, None);
        Self { severity, topic, place, key, value, message, allowed, meant, remedy }
    }

    /// A warning with this message, as [`Self::fault`].
    pub fn warning(message: impl Into<String>) -> Self {
        Self { severity: ConfigSeverity::Warning, ..Self::fault(message) }
    }

    /// The same about a setting, as `section.key`.
    #[must_use]
    pub fn about(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// The same at a place.
    #[must_use]
    pub fn at(self, place: ConfigPlace) -> Self {
        Self { place, ..self }
    }

    /// The same with a topic.
    #[must_use]
    pub fn on(self, topic: ConfigTopic) -> Self {
        Self { topic, ..self }
    }

    /// Whether skep does not start because of it.
    pub fn is_fault(&self) -> bool {
        self.severity == ConfigSeverity::Fault
    }

    /// What to do, in one text: what is allowed, what was probably meant, and anything else.
    pub fn advice(&self) -> Option<String> {
        let parts = [
            self.allowed.as_ref().map(|it| format!("allowed: {it}")),
            self.meant.as_ref().map(|it| format!("did you mean {it}?")),
            self.remedy.clone(),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// The finding as programs get it. These names stay the same.
    pub fn to_json(&self) -> impl Serialize {
        #[derive(Serialize)]
        struct Fields {
            severity: ConfigSeverity,
            file: Option<String>,
            line: Option<usize>,
            column: Option<usize>,
            source: Option<String>,
            key: Option<String>,
            value: Option<String>,
            message: String,
            remedy: Option<String>,
        }
        let (mut file, mut line, mut column, mut source) = (None, None, None, None);
        match &self.place {
            ConfigPlace::Default => {}
            ConfigPlace::Named(name) => source = Some(name.clone()),
            ConfigPlace::File { path, line: in_line, column: in_column } => {
                file = Some(path.display().to_string());
                line = Some(*in_line).filter(|it| *it > 0);
                column = Some(*in_column).filter(|it| *it > 0);
            }
        }
        let (severity, key, value) = (self.severity, self.key.clone(), self.value.clone());
        let (message, remedy) = (self.message.clone(), self.advice());
        Fields { severity, file, line, column, source, key, value, message, remedy }
    }
}

impl fmt::Display for ConfigFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place != ConfigPlace::Default {
            write!(f, "{}: ", OneLine(&self.place.to_string()))?;
        }
        if let Some(key) = &self.key {
            write!(f, "{}: ", OneLine(key))?;
        }
        OneLine(&self.message).fmt(f)?;
        if let Some(allowed) = &self.allowed {
            write!(f, "; allowed: {}", OneLine(allowed))?;
        }
        if let Some(meant) = &self.meant {
            write!(f, "; did you mean {}?", OneLine(meant))?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "; remedy: {}", OneLine(remedy))?;
        }
        Ok(())
    }
}

/// A configuration that is refused, with all its faults. Its text is for the operator: a line for
/// each fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The faults, at least one.
    pub faults: Vec<ConfigFinding>,
}

impl ConfigError {
    /// An error with one fault. `place` is a variable, a flag, or a setting as `section.key`;
    /// empty: none.
    pub fn at(place: impl Into<String>, problem: impl Into<String>) -> Self {
        let (place, fault) = (place.into(), ConfigFinding::fault(problem));
        let is_setting = super::setting(&place).is_some();
        Self::from(match place.as_str() {
            "" => fault,
            _ if is_setting => fault.about(place),
            _ => fault.at(ConfigPlace::Named(place)),
        })
    }
}

impl From<ConfigFinding> for ConfigError {
    fn from(fault: ConfigFinding) -> Self {
        Self { faults: vec![fault] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in self.faults.iter().enumerate() {
            if at > 0 {
                f.write_char('\n')?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

/// Text that may quote input: printed as one line, without control characters for a terminal.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.trim_end().chars().try_for_each(|character| {
            if character.is_control() {
                character.escape_debug().fmt(f)
            } else {
                f.write_char(character)
            }
        })
    }
}

impl std::error::Error for ConfigError {}
