//! What a reload can change: the one list that SIGHUP, its log line and the documentation go by.

/// Sections (with a dot at the end) and settings that can change while serving.
const LIVE: &[&str] = &[
    "server.drain_s",
    "udp.key_file",
    "http.trusted_proxies",
    "http.source_header",
    "http.connections_per_source_max",
    "http.head_timeout_s",
    "http.idle_timeout_s",
    "http.full_scrape",
    "http.full_scrape_interval_s",
    "http.public_stats",
    "http.warning",
    "http.tracker_id",
    "websocket.",
    "access.similar_digits_max",
    "access.torrents_allow",
    "access.torrents_deny",
    "access.networks_allow",
    "access.networks_deny",
    "access.clients_allow",
    "access.clients_deny",
    "access.ports_deny",
    "limits.",
    "tracker.",
    "memory.",
    "snapshot.interval_s",
    "admin.token",
    "log.level",
];

/// Whether a reload makes a new value of this setting act.
pub(super) fn is_live(section: &str, key: &str) -> bool {
    LIVE.iter().any(|text| match text.split_once('.') {
        Some((listed, "")) => listed == section,
        Some(listed) => listed == (section, key),
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, SECTIONS, settings};

    /// Sections whose own documentation speaks for their settings, but for this one.
    const ALL_BUT: [(&str, &str); 1] = [("access", "mode")];

    #[test]
    fn every_live_setting_exists() {
        for listed in LIVE {
            let exists = |(section, key): (&str, &str)| {
                settings()
                    .iter()
                    .any(|it| it.section == section && (key.is_empty() || it.key == key))
            };
            assert!(listed.split_once('.').is_some_and(exists), "{listed}");
        }
    }

    #[test]
    fn documentation_says_what_is_reloaded() {
        for setting in settings() {
            let (_, about) =
                SECTIONS.iter().find(|(section, _)| *section == setting.section).unwrap();
            let says = |lines: &[&str]| lines.concat().contains("eloaded by SIGHUP.");
            let by_section = says(about) && !ALL_BUT.contains(&(setting.section, setting.key));
            assert_eq!(
                by_section || says(setting.help),
                setting.is_live,
                "{}.{}",
                setting.section,
                setting.key
            );
        }
    }

    #[test]
    fn a_reload_takes_what_is_live_and_nothing_else() {
        let old = Config::default();
        let mut new = old.clone();
        new.server.drain_s = 7;
        new.server.workers = 7;
        new.access.mode = crate::config::AccessMode::Private;
        new.access.ports_deny = "ports".into();
        new.http.full_scrape = true;
        new.http.unix_socket = "socket".into();
        new.tracker.interval_s = 700;
        new.log.format = crate::config::LogFormat::Json;
        let reloaded = old.reloaded(&new);
        let mut expected = old;
        expected.server.drain_s = 7;
        expected.access.ports_deny = "ports".into();
        expected.http.full_scrape = true;
        expected.tracker.interval_s = 700;
        assert_eq!(reloaded, expected);
        assert!(reloaded.differences(&new).iter().all(|it| !it.is_live));
        assert_eq!(reloaded.differences(&new).len(), 4);
    }
}
