//! Lists of the API, which come in pages.

use std::io::{self, Write as _};
use std::process::ExitCode;

use serde_json::Value;

use super::{AdminClient, CommandError, query};
use crate::cli::json;
use crate::cli::table::{Table, TableCell};

/// Entries in one response: the most that the API serves.
const PAGE_MAX: usize = 1000;

/// A list of the API, and how it is printed.
pub(in crate::cli) struct PagedList<'a, const COLUMNS: usize> {
    /// Its path.
    pub(in crate::cli) path: &'a str,
    /// Parameters of its path, beside those that name a page.
    pub(in crate::cli) parameters: Vec<(&'a str, &'a str)>,
    /// The field of a response that has the entries.
    pub(in crate::cli) field: &'a str,
    /// Entries that are printed, at most.
    pub(in crate::cli) entries_max: usize,
    /// The heads of a table.
    pub(in crate::cli) heads: [&'static str; COLUMNS],
    /// The row of an entry.
    pub(in crate::cli) row: fn(&Value) -> [TableCell; COLUMNS],
    /// What is printed on standard error in place of an empty table.
    pub(in crate::cli) if_empty: &'a str,
}

impl<const COLUMNS: usize> PagedList<'_, COLUMNS> {
    /// Prints the entries page by page: as a table, or each as a JSON object.
    ///
    /// # Errors
    /// [`CommandError`] if the tracker refuses or does not respond, or standard output is closed.
    pub(in crate::cli) fn print(
        &self,
        client: &mut AdminClient,
        as_json: bool,
    ) -> Result<ExitCode, CommandError> {
        let mut table = Table::new(self.heads);
        let (mut after, mut left) = (None::<String>, self.entries_max);
        loop {
            let limit = left.min(PAGE_MAX).to_string();
            let mut parameters = self.parameters.clone();
            parameters.push(("limit", &limit));
            parameters.extend(after.as_deref().map(|value| ("after", value)));
            let page = client.get(&format!("{}{}", self.path, query(&parameters)))?;
            let entries = page[self.field].as_array().map_or(&[][..], Vec::as_slice);
            left -= entries.len().min(left);
            if as_json {
                io::stdout().lock().write_all(json::lines(entries).as_bytes())?;
            } else {
                table.print(&entries.iter().map(self.row).collect::<Vec<_>>())?;
            }
            after = page["next"].as_str().map(str::to_owned);
            if after.is_none() || left == 0 {
                break;
            }
        }
        if left == self.entries_max && !as_json {
            crate::cli::complain(self.if_empty);
        }
        Ok(ExitCode::SUCCESS)
    }
}
