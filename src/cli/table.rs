//! Tables of subcommands. On a terminal: heads, aligned columns, units and dates for people. Else:
//! columns separated by tabs, no heads, exact numbers, for `cut` and `awk`.

use std::io::{self, IsTerminal as _, Write as _};

use super::doctor;
use super::text::{date, escaped};
use crate::frontend::figures::grouped;

/// A value in a table.
pub(super) enum TableCell {
    /// A text, possibly from elsewhere.
    Text(String),
    /// A number.
    Number(u64),
    /// Bytes; `None`: unknown.
    Bytes(Option<u64>),
    /// Seconds since the Unix epoch; `None`: unknown.
    Date(Option<u64>),
}

impl TableCell {
    /// The text for people, or the exact one.
    fn text(&self, is_for_people: bool) -> String {
        match self {
            Self::Text(text) => escaped(text),
            Self::Number(number) if is_for_people => grouped(*number),
            Self::Number(number) => number.to_string(),
            Self::Bytes(Some(bytes)) if is_for_people => doctor::size(*bytes),
            Self::Bytes(Some(bytes)) => bytes.to_string(),
            Self::Date(Some(at_s)) => date(*at_s),
            Self::Bytes(None) | Self::Date(None) => "-".to_owned(),
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Number(_) | Self::Bytes(_))
    }
}

/// A table that is printed in parts, so that a long one needs little memory. Texts of unknown
/// width belong into the last column.
pub(super) struct Table<const COLUMNS: usize> {
    heads: [&'static str; COLUMNS],
    is_for_people: bool,
    has_begun: bool,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(super) fn new(heads: [&'static str; COLUMNS]) -> Self {
        Self { heads, is_for_people: io::stdout().is_terminal(), has_begun: false }
    }

    /// Prints some rows.
    ///
    /// # Errors
    /// If standard output cannot be written.
    pub(super) fn print(&mut self, rows: &[[TableCell; COLUMNS]]) -> io::Result<()> {
        let text = self.render(rows);
        io::stdout().lock().write_all(text.as_bytes())
    }

    fn render(&mut self, rows: &[[TableCell; COLUMNS]]) -> String {
        let mut lines: Vec<[String; COLUMNS]> = Vec::with_capacity(rows.len() + 1);
        if self.is_for_people && !self.has_begun && !rows.is_empty() {
            lines.push(self.heads.map(str::to_owned));
            self.has_begun = true;
        }
        let texts =
            |row: &[TableCell; COLUMNS]| row.each_ref().map(|it| it.text(self.is_for_people));
        lines.extend(rows.iter().map(texts));
        if !self.is_for_people {
            return lines.iter().map(|line| line.join("\t") + "\n").collect();
        }
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
        let widths: Vec<_> = (0..COLUMNS).map(|it| width(it).unwrap_or_default()).collect();
        let is_number = |column: usize| rows.first().is_some_and(|row| row[column].is_number());
        let padded = |(column, text): (usize, &String)| {
            let width = widths[column];
            match (is_number(column), column + 1 == COLUMNS) {
                (true, _) => format!("{text:>width$}"),
                (false, true) => text.clone(),
                (false, false) => format!("{text:<width$}"),
            }
        };
        let line = |line: &[String; COLUMNS]| {
            let cells: Vec<_> = line.iter().enumerate().map(padded).collect();
            cells.join("  ").trim_end().to_owned() + "\n"
        };
        lines.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> [[TableCell; 4]; 2] {
        let text = |it: &str| TableCell::Text(it.to_owned());
        [
            [text("a"), TableCell::Number(1), TableCell::Bytes(Some(3 << 29)), text("one\nline")],
            [text("abc"), TableCell::Number(12_345), TableCell::Bytes(None), text("b")],
        ]
    }

    fn table(is_for_people: bool) -> Table<4> {
        Table { heads: ["ID", "PEERS", "SIZE", "NAME"], is_for_people, has_begun: false }
    }

    #[test]
    fn people_get_aligned_columns_and_units() {
        let mut table = table(true);
        let expected = "ID    PEERS     SIZE  NAME\n\
                        a         1  1.5 GiB  one\\nline\n\
                        abc  12,345        -  b\n";
        assert_eq!(table.render(&rows()), expected);
        assert!(!table.render(&rows()).contains("PEERS"), "heads come once");
    }

    #[test]
    fn programs_get_exact_numbers_between_tabs() {
        let expected = "a\t1\t1610612736\tone\\nline\nabc\t12345\t-\tb\n";
        assert_eq!(table(false).render(&rows()), expected);
        assert_eq!(table(true).render(&[]), "");
        let date = TableCell::Date(Some(1_795_303_209));
        assert_eq!(date.text(true), "2026-11-21T23:20:09Z");
        assert_eq!(date.text(false), date.text(true));
    }
}
