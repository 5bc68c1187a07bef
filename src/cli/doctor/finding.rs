//! A finding: one fact about the host, with its severity, why it matters and what to do.

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};
use strum::{EnumCount, IntoStaticStr, VariantArray};

use super::host::HostReadError;

/// How bad a finding is, from good to bad.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    EnumCount,
    IntoStaticStr,
    VariantArray,
)]
#[strum(serialize_all = "snake_case")]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing, or unknown.
    Info,
    /// Some clients are served worse, or will be under load.
    Warning,
    /// skep does not start, or clients are not served.
    Problem,
}

impl Severity {
    /// All of them, from good to bad.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// Its name in the report.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// One fact about the host, with its severity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Name of the check, as `group.name`. It stays the same from version to version.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub fact: String,
    /// Why it matters.
    pub why: &'static str,
    /// What to do. A line that begins with `$ ` is a command.
    pub remedy: Option<String>,
}

impl Finding {
    /// The group: the part of `id` before the dot.
    pub fn group(&self) -> &'static str {
        self.id.split_once('.').map_or(self.id, |it| it.0)
    }

    /// The remedy without its commands.
    pub fn advice(&self) -> Option<String> {
        let lines: Vec<_> = self.remedy_lines().filter(|it| !it.starts_with(COMMAND)).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    /// The commands of the remedy, to be run as root.
    pub fn commands(&self) -> Vec<&str> {
        self.remedy_lines().filter_map(|it| it.strip_prefix(COMMAND)).collect()
    }

    fn remedy_lines(&self) -> impl Iterator<Item = &str> {
        self.remedy.iter().flat_map(|it| it.lines())
    }

    /// Adds a remedy.
    pub(super) fn remedied(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

/// The beginning of a remedy's line that is a command.
pub(super) const COMMAND: &str = "$ ";

impl Serialize for Finding {
    /// As programs get it. These names stay the same.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Finding", 6)?;
        fields.serialize_field("id", self.id)?;
        fields.serialize_field("severity", &self.severity)?;
        fields.serialize_field("fact", &self.fact)?;
        fields.serialize_field("why", self.why)?;
        fields.serialize_field("remedy", &self.advice())?;
        fields.serialize_field("commands", &self.commands())?;
        fields.end()
    }
}

/// A check: the name and the reason that its findings share.
pub(super) struct Check {
    id: &'static str,
    why: &'static str,
}

impl Check {
    pub(super) const fn new(id: &'static str, why: &'static str) -> Self {
        Self { id, why }
    }

    pub(super) fn ok(&self, fact: impl Into<String>) -> Finding {
        self.found(Severity::Ok, fact.into())
    }

    pub(super) fn info(&self, fact: impl Into<String>) -> Finding {
        self.found(Severity::Info, fact.into())
    }

    pub(super) fn warning(&self, fact: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.found(Severity::Warning, fact.into()).remedied(remedy)
    }

    pub(super) fn problem(&self, fact: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.found(Severity::Problem, fact.into()).remedied(remedy)
    }

    /// The finding of a check whose file cannot be read.
    pub(super) fn unread(&self, error: &HostReadError) -> Finding {
        self.info(format!("unknown: {error}")).remedied(format!(
            "let this user read {}, or run `skep doctor` as root, outside of a sandbox",
            error.path
        ))
    }

    /// A finding without a remedy.
    pub(super) fn found(&self, severity: Severity, fact: String) -> Finding {
        Finding { id: self.id, severity, fact, why: self.why, remedy: None }
    }
}
