//! An error in the configuration: its place, its setting, the problem, and what is allowed.

use std::fmt::{self, Write as _};

/// A configuration that is refused. Its text is for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The place: `skep.toml:3:10`, a variable, or a flag. Empty for a default.
    pub place: String,
    /// The setting, as `section.key`, if the error concerns one.
    pub setting: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What is allowed instead, if that can be named.
    pub allowed: Option<String>,
}

impl ConfigError {
    /// An error at a place that concerns no particular setting.
    pub fn at(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), setting: None, problem: problem.into(), allowed: None }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_empty() {
            write!(f, "{}: ", OneLine(&self.place))?;
        }
        if let Some(setting) = &self.setting {
            write!(f, "{}: ", OneLine(setting))?;
        }
        OneLine(&self.problem).fmt(f)?;
        if let Some(allowed) = &self.allowed {
            write!(f, "; allowed: {}", OneLine(allowed))?;
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
