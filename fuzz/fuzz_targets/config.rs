//! Configuration from a file and from the environment, both arbitrary.
//!
//! ```text
//! input   the file's text | 0 | VARIABLE=value | 0 | VARIABLE=value | …
//! ```
//!
//! Invariants checked: nothing panics; an error has a line of text for each of its faults, whatever
//! the values that it quotes; an accepted configuration can be printed, and is the same when read
//! back.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use skep::config::{Config, SettingsSource};

/// The file that the text is written to.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    std::env::temp_dir().join(format!("skep-fuzz-config-{}.toml", std::process::id()))
});

fn load(text: &str, environment: Vec<(String, String)>) -> Option<Config> {
    std::fs::write(&*FILE, text).expect("the temporary folder can be written to");
    let source = SettingsSource { file: Some(FILE.clone()), environment, flags: Vec::new() };
    match source.load() {
        Ok(config) => Some(config),
        Err(error) => {
            let text = error.to_string();
            assert_eq!(text.split('\n').count(), error.faults.len(), "{text:?}");
            let is_sound = |it: &str| !it.is_empty() && !it.contains(char::is_control);
            assert!(text.split('\n').all(is_sound), "{text:?}");
            None
        }
    }
}

fuzz_target!(|input: &str| {
    let mut parts = input.split('\0');
    let text = parts.next().unwrap_or_default();
    // Other names cannot be set by a shell. They reach no log except that of the user who set them.
    let word = |it: &&str| it.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_');
    let pairs = parts.filter_map(|it| it.split_once('=').filter(|(name, _)| word(name)));
    let environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    if let Some(config) = load(text, environment) {
        let printed = config.to_commented_toml();
        assert_eq!(load(&printed, Vec::new()).as_ref(), Some(&config), "{printed}");
    }
});
