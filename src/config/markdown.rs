//! The configuration as a page of documentation, from the comments of `skep config`.

use std::fmt::Write as _;

use super::{Config, SECTIONS, Setting, SettingsSource, settings};

/// The head of the page.
const HEAD: &str = "\
# Configuration

<!-- Printed by `skep config --format markdown`: change the comments in src/config/mod.rs. -->

skep runs without configuration. Settings come from a TOML file (`--config FILE`). The environment
overrides the file, and flags override both. A file needs only what differs from the defaults below.
`skep config` prints them all as such a file, and `skep check --config FILE` validates such a file
without starting: a key that does not exist, or a value that is not allowed, is refused with line
and column. In a variable, the items of a list are separated by commas. A relative path, also one in
a file, is relative to the working directory of the process (`/` under systemd): `skep check` warns
of those of lists, certificates and keys, and names the absolute path.

*Reload* means that SIGHUP (`systemctl reload skep`) applies a new value while clients are served.
*Restart* means that the setting changes only at the next start; a reload logs
`not reloaded, needs a restart`.

";

impl Config {
    /// All settings with their defaults as a page in Markdown.
    pub fn to_markdown() -> String {
        let defaults = toml::Table::try_from(Self::default()).unwrap_or_default();
        let settings = settings();
        let mut out = String::from(HEAD);
        for (section, about) in SECTIONS {
            let about = paragraph(about, &settings);
            let _ = writeln!(out, "- [`[{section}]`](#{section}): {}", first_sentence(&about));
        }
        for (section, about) in SECTIONS {
            let _ = writeln!(out, "\n## {section}\n\n{}", paragraph(about, &settings));
            for setting in settings.iter().filter(|it| it.section == *section) {
                let default = defaults.get(*section).and_then(|inner| inner.get(setting.key));
                let default = default.map(ToString::to_string).unwrap_or_default();
                out.push_str(&entry(setting, &default, &settings));
            }
        }
        out
    }
}

/// One setting: what it does, then a table of its properties.
fn entry(setting: &Setting, default: &str, all: &[Setting]) -> String {
    let Setting { section, key, .. } = setting;
    let change = if setting.is_live { "reload" } else { "restart" };
    let variable = format!("{}{section}__{key}", SettingsSource::VARIABLE_PREFIX).to_uppercase();
    format!(
        "\n### {section}.{key}\n\n{}\n\n\
         | default | allowed | changes by | variable |\n|---|---|---|---|\n\
         | `{default}` | {} | {change} | `{variable}` |\n",
        paragraph(setting.help, all),
        setting.allowed,
    )
}

/// Lines as one paragraph, in which names of settings are links.
fn paragraph(lines: &[&str], all: &[Setting]) -> String {
    let text: String = lines.concat();
    let mut out = String::new();
    // Every second piece is between backticks.
    for (at, piece) in text.trim().split('`').enumerate() {
        if at % 2 == 1 {
            let _ = write!(out, "`{piece}`");
            continue;
        }
        let words: Vec<_> = piece.split(' ').map(|it| linked(it, all)).collect();
        out.push_str(&words.join(" "));
    }
    out
}

/// A word, as a link if it is the name of a setting.
fn linked(word: &str, all: &[Setting]) -> String {
    let name = word.trim_matches(|it: char| !it.is_ascii_alphanumeric());
    let is_it = |it: &Setting| name == format!("{}.{}", it.section, it.key);
    if all.iter().any(is_it) {
        let anchor = name.replace('.', "");
        word.replace(name, &format!("[`{name}`](#{anchor})"))
    } else {
        word.to_owned()
    }
}

/// The text up to the first full stop or colon that ends a word.
fn first_sentence(text: &str) -> &str {
    let ends = [". ", ": "].iter().filter_map(|end| text.find(end));
    ends.min().map_or(text, |end| &text[..end]).trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_in_a_text_are_links_and_other_words_are_not() {
        let all = settings();
        let text = [" As tracker.interval_s, or `admin.token` in", " (server.state_dir). a.b"];
        assert_eq!(
            paragraph(&text, &all),
            "As [`tracker.interval_s`](#trackerinterval_s), or `admin.token` in \
             ([`server.state_dir`](#serverstate_dir)). a.b"
        );
    }

    #[test]
    fn every_setting_has_an_entry() {
        let page = Config::to_markdown();
        for setting in settings() {
            let variable = format!("`SKEP__{}__{}`", setting.section, setting.key).to_uppercase();
            assert!(
                page.contains(&format!("\n### {}.{}\n", setting.section, setting.key)),
                "{setting:?}"
            );
            assert!(page.contains(&variable), "{setting:?}");
        }
        assert!(page.contains("| `1800` | 1 to 7200 | reload | `SKEP__TRACKER__INTERVAL_S` |"));
        assert!(page.contains("| `\"auto\"` | \"auto\", \"uring\", \"mmsg\" | restart |"));
    }
}
