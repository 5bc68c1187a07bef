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
    /// The problem of a refusal with this reason: what the request lacks, the refusal, its remedy.
    pub(super) fn explained(self, reason: &str, problem: &str) -> String {
        let is_passkey_missing = is_about_passkey(&reason.to_ascii_lowercase())
            && !self.names_passkey
            && reason != Refusal::PasskeyLimit.text();
        let missing = if is_passkey_missing { "passkey missing; " } else { "" };
        let remedy = self.remedy(reason).map(|it| format!("; remedy: {it}")).unwrap_or_default();
        format!("{missing}{problem}{remedy}")
    }

    /// What to do about a refusal with this reason; `None` if the reason is unknown. Trackers have
    /// texts of their own: words that occur in them decide.
    fn remedy(self, reason: &str) -> Option<&'static str> {
        let reason = reason.to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| reason.contains(word));
        Some(if reason == Refusal::NoSource.text() {
            "http.trusted_proxies lists this host, and the request names no client: probe the URL \
             of the proxy"
        } else if has(&["too many", "limit", "slow down"]) {
            "wait, then try again"
        } else if is_about_passkey(&reason) {
            match (self.names_passkey, self.names_torrent) {
                (true, _) => "use a passkey that is issued and not revoked",
                (false, true) => "name a passkey with --passkey KEY",
                (false, false) => {
                    "name a passkey with --passkey KEY, and a torrent that the tracker serves with \
                     --info-hash HASH|FILE.torrent"
                }
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

/// Whether a refusal in lower case is about a passkey, by the words of several trackers.
fn is_about_passkey(reason: &str) -> bool {
    const WORDS: [&str; 5] = ["passkey", "pass key", "authkey", "auth key", "authenticat"];
    WORDS.iter().any(|word| reason.contains(word))
}

/// Explains an HTTP status that clients do not accept, for a request to this path (no query).
pub(super) fn status(status: u16, path: &str, is_websocket: bool) -> String {
    let (expected, usual) = if is_websocket { ("101", "/") } else { ("200", "/announce") };
    let hint = match status {
        200..300 if is_websocket => {
            "not upgraded to a WebSocket: not a WebTorrent tracker, or a proxy that does not \
             forward the headers Upgrade and Connection"
                .into()
        }
        300..400 => {
            "a redirect, which clients do not follow: use the URL that it leads to, if a tracker \
             is there"
                .into()
        }
        400 => "request not accepted: check that this is an announce URL".into(),
        401 | 403 => "client refused: check the passkey (--passkey KEY, or in the URL)".into(),
        404 | 405 if path.split('/').any(|part| part.starts_with("announce")) => {
            format!("no tracker at {path} of this host and port: check host, port and path")
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

/// Explains a redirect to this place, of which at most 200 bytes are shown.
pub(super) fn redirect(status: u16, place: &[u8]) -> String {
    let place = place[..place.len().min(200)].escape_ascii();
    format!(
        "HTTP status {status}: a redirect to \"{place}\", which clients do not follow: no \
         WebTorrent tracker at this URL"
    )
}

/// Explains a response that lacks what every announce has, for a request to this path.
pub(super) fn incomplete(flaw: &str, path: &str) -> String {
    let last = path.rsplit('/').next().unwrap_or_default();
    let hint = if last.starts_with("scrape") {
        ": that is the path of scrapes, try /announce"
    } else {
        ""
    };
    format!("malformed: {flaw}{hint}")
}

/// Explains that nothing listens at an address.
pub(super) fn closed(cause: &str) -> String {
    format!("nothing listens there ({cause}): is the tracker running, is the port right?")
}

/// Explains a connection that ends before the response.
pub(super) fn without_response(has_tls: bool, path: &str) -> String {
    let hint = if has_tls { "" } else { "a TLS port (try https:// or wss://), " };
    format!("closed without a response: {hint}not a tracker, or no tracker at {}", shown(path))
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
        let explained = |request: ProbeRequest| request.explained("unknown passkey", "refused");
        assert!(explained(NOTHING).starts_with("passkey missing; refused; remedy: name a passkey"));
        assert!(explained(NOTHING).contains("--info-hash"));
        assert!(explained(BOTH).starts_with("refused; remedy: use a passkey"));
        assert_eq!(NOTHING.explained("no", "refused"), "refused");
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
        assert!(incomplete("no interval", "/x/scrape").contains("try /announce"));
        assert_eq!(incomplete("no interval", "/announce"), "malformed: no interval");
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
