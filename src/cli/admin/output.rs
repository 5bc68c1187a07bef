//! What a subcommand that changes something prints. A reader that stops early, such as `head`, or a
//! full disk must not end the changes midway: they go on, and the exit code shows what is missing.

use std::io::{self, Write as _};
use std::process::ExitCode;

use super::CommandError;

/// Standard output of a subcommand that changes something. Its first error is kept.
#[derive(Debug, Default)]
pub(in crate::cli) struct ChangeOutput {
    error: Option<io::Error>,
}

impl ChangeOutput {
    /// Prints a text. After an error nothing more is printed.
    pub(in crate::cli) fn print(&mut self, text: &str) {
        self.keep(|| io::stdout().lock().write_all(text.as_bytes()));
    }

    /// Prints by this function, unless there was an error.
    pub(in crate::cli) fn keep(&mut self, print: impl FnOnce() -> io::Result<()>) {
        if self.error.is_none() {
            self.error = print().and_then(|()| io::stdout().lock().flush()).err();
        }
    }

    /// The first error.
    pub(in crate::cli) fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }

    /// The result of a subcommand with these changes: an error if they were made and not printed.
    ///
    /// # Errors
    /// That of the changes, else [`CommandError::Unprinted`].
    pub(in crate::cli) fn end(
        mut self,
        changed: Result<ExitCode, CommandError>,
    ) -> Result<ExitCode, CommandError> {
        let Some(error) = self.take_error() else { return changed };
        let unprinted = CommandError::Unprinted(error);
        if changed.is_err() {
            crate::cli::complain(&unprinted.to_string());
            return changed;
        }
        Err(unprinted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_of_the_output_is_kept_and_an_error_of_the_changes_goes_first() {
        let failing = || {
            let mut output = ChangeOutput::default();
            output.keep(|| Err(io::ErrorKind::StorageFull.into()));
            output.keep(|| unreachable!("nothing is printed after an error"));
            output
        };
        let full = io::Error::from(io::ErrorKind::StorageFull).to_string();
        let unprinted = failing().end(Ok(ExitCode::SUCCESS)).unwrap_err().to_string();
        assert!(unprinted.contains(&full) && unprinted.contains("were made"), "{unprinted}");
        let failed = failing().end(Err(CommandError::Failed("x".into())));
        assert_eq!(failed.unwrap_err().to_string(), "x");
        assert!(ChangeOutput::default().end(Ok(ExitCode::SUCCESS)).is_ok());
    }
}
