//! Explanations of what went wrong that fit the URL and the flags which were given: a hint that the
//! user has already followed helps nobody.

use std::io;

use crate::types::Refusal;

/// What the user has named, beside the URL.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProbeRequest {
    /// `--info-hash`.
    pub(super) names_torrent: bool,
    /// `--passkey`, or a passkey in the URL.
    pub(super) names_passkey: bool,
}

impl ProbeRequest {
    /// What to do about a refusal with this reason; `None` if the reason is unknown. Trackers have
    /// texts of their own: words that occur in them decide.
    pub(super) fn remedy(self, reason: &str) -> Option<&'static str> {
        let reason = reason.to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| reason.contains(word));
        Some(if reason == Refusal::NoSource.text() {
            "http.trusted_proxies lists this host, and the request names no client: probe the URL \
             of the proxy"
        } else if has(&["too many", "limit", "slow down"]) {
            "wait, then try again"
        } else if has(&["passkey", "pass key", "authkey", "auth key", "authenticat"]) {
            match self.names_passkey {
                true => "use a passkey that is issued and not revoked",
                false => "name a passkey with --passkey KEY",
            }
        } else if has(&["registered", "torrent", "info_hash", "info-hash", "infohash"]) {
            match self.names_torrent {
                true => "register this torrent with the tracker, or name another one",
                false => "name a torrent that it serves, with --info-hash HASH|FILE.torrent",
            }
        } else if has(&["network", "address"]) {
            "probe from a network that the tracker serves"
        } else {
            return None;
        })
    }
}

/// Explains an HTTP status that clients do not accept, for a request to this path (no query).
pub(super) fn status(status: u16, path: &str, is_websocket: bool) -> String {
    let (expected, usual) = if is_websocket { ("101", "/") } else { ("200", "/announce") };
    let hint = match status {
        200..300 if is_websocket => {
            "not upgraded to a WebSocket: not a WebTorrent tracker, or a proxy that does not pass \
             the fields Upgrade and Connection on"
                .into()
        }
        300..400 => "a redirect, which clients do not follow: use the URL that it leads to".into(),
        400 => "request not accepted: check that this is an announce URL".into(),
        401 | 403 => "client refused: check the passkey (--passkey KEY, or in the URL)".into(),
        404 | 405 if path.split('/').any(|part| part.starts_with("announce")) => {
            format!("no tracker at {path} of this host and port: check the three")
        }
        404 | 405 if is_websocket => format!("no WebTorrent tracker at {}", shown(path)),
        404 | 405 => format!("no tracker at {}: try {usual}", shown(path)),
        429 | 503 => "too busy now: try again later".into(),
        502 | 504 => "the proxy cannot reach its tracker".into(),
        _ => format!("clients accept status {expected} only"),
    };
    format!("HTTP status {status}: {hint}")
}

fn shown(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}

/// Explains a name without an address.
pub(super) fn unresolved(error: &io::Error, host: &str) -> String {
    let text = error.to_string();
    // The library's prefix repeats the name of the step.
    let cause = text.strip_prefix("failed to lookup address information: ").unwrap_or(&text);
    format!("{host}: {cause}")
}

/// Explains an address without a route.
pub(super) const NO_ROUTE: &str =
    "this host has no route to that address: check its network, or choose with -4 or -6";

/// Whether an error means that there is no route.
pub(super) fn is_unrouted(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: ProbeRequest = ProbeRequest { names_torrent: false, names_passkey: false };
    const BOTH: ProbeRequest = ProbeRequest { names_torrent: true, names_passkey: true };

    #[test]
    fn a_refusal_leads_to_the_flag_that_was_not_given() {
        for (refusal, first, then) in [
            (Refusal::Unregistered, "--info-hash", "register this torrent"),
            (Refusal::SimilarTorrent, "--info-hash", "register this torrent"),
            (Refusal::TorrentDenied, "--info-hash", "another one"),
            (Refusal::UnknownPasskey, "--passkey KEY", "issued and not revoked"),
            (Refusal::PasskeyLimit, "wait", "wait"),
            (Refusal::Limited, "wait", "wait"),
            (Refusal::NoSource, "http.trusted_proxies", "the URL of the proxy"),
            (Refusal::NetworkDenied, "from a network", "from a network"),
        ] {
            let said = NOTHING.remedy(refusal.text()).unwrap();
            assert!(said.contains(first), "{refusal:?}: {said}");
            let said = BOTH.remedy(refusal.text()).unwrap();
            assert!(said.contains(then), "{refusal:?}: {said}");
        }
        assert!(NOTHING.remedy("Unregistered torrent pass").unwrap().contains("--info-hash"));
        assert!(NOTHING.remedy("Invalid passkey.").unwrap().contains("--passkey"));
        assert_eq!(NOTHING.remedy("no"), None);
    }

    #[test]
    fn the_announce_path_is_not_proposed_to_those_who_used_it() {
        for path in ["/announce", "/x/announce.php", "/announce/KEY"] {
            let said = status(404, path, false);
            assert!(said.contains(&format!("no tracker at {path} of")), "{said}");
            assert!(!said.contains("try"), "{said}");
        }
        assert_eq!(status(404, "", false), "HTTP status 404: no tracker at /: try /announce");
        assert!(status(405, "/tracker", false).ends_with("no tracker at /tracker: try /announce"));
        assert!(!status(404, "/", true).contains("try"));
        assert!(status(200, "/", true).contains("Upgrade and Connection"));
        assert!(status(500, "/", true).ends_with("clients accept status 101 only"));
    }

    #[test]
    fn the_words_of_a_step_are_not_repeated() {
        let error = io::Error::other("failed to lookup address information: Name not known");
        assert_eq!(unresolved(&error, "a.example"), "a.example: Name not known");
        assert_eq!(unresolved(&io::Error::other("odd"), "a"), "a: odd");
    }
}
