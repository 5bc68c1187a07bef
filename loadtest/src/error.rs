//! Why the program ends without success, and its exit code.

use std::process::ExitCode;

/// Why the program ends without success: one sentence with the cause.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadtestError {
    /// The arguments make no sense; the sentence names the option to change.
    #[error("{0}")]
    Usage(String),
    /// A run failed, or missed an expectation.
    #[error("{0}")]
    Failed(String),
    /// A signal ended the run, after a report on what was measured until then.
    #[error("interrupted")]
    Interrupted,
}

impl LoadtestError {
    /// 2 for invalid usage, as clap has it, else 1.
    pub(crate) fn exit_code(&self) -> ExitCode {
        const USAGE: u8 = 2;
        match self {
            Self::Usage(_) => ExitCode::from(USAGE),
            Self::Failed(_) | Self::Interrupted => ExitCode::FAILURE,
        }
    }
}

impl From<String> for LoadtestError {
    fn from(cause: String) -> Self {
        Self::Failed(cause)
    }
}
