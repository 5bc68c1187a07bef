//! `/runbook/ALERT`: what to do about an alert, from docs/operating.md as of this version. Alerts
//! link to it, so that the link leads somewhere without a web server for the documents.

use axum::extract::Path;
use axum::response::{IntoResponse, Response};

use super::problem::ApiError;

const PAGE: &str = include_str!("../../docs/operating.md");

/// The section of the page on an alert, as plain text.
pub(super) async fn section(Path(alert): Path<String>) -> Response {
    section_on(&alert).map_or_else(
        || ApiError::no_such_page().into_response(),
        |text| format!("{alert}\n\n{text}\n").into_response(),
    )
}

/// What is between the heading of this alert and the next heading.
fn section_on(alert: &str) -> Option<&'static str> {
    let headed = |section: &&str| section.lines().next() == Some(alert);
    let section = PAGE.split("\n### ").skip(1).find(headed)?;
    let (_, text) = section.split_once('\n')?;
    Some(text.split("\n## ").next().unwrap_or(text).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_begins_behind_its_heading_and_ends_before_the_next() {
        let text = section_on("SkepAbsent").unwrap();
        assert!(text.starts_with("Prometheus has no target") && !text.contains("SkepRestarts"));
        assert!(PAGE.contains("\n### SkepDown\n"));
        for unknown in ["", "Skep", "SkepDown\n", "skepdown", "../SkepDown"] {
            assert_eq!(section_on(unknown), None, "{unknown}");
        }
    }
}
