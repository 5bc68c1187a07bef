//! How requests over HTTP and WebSocket spell what they say.

use skep::types::Event;

/// What an event is called.
pub(crate) fn event(event: Event) -> &'static str {
    match event {
        Event::None => "",
        Event::Completed => "completed",
        Event::Started => "started",
        Event::Stopped => "stopped",
        Event::Paused => "paused",
    }
}

/// Bytes as a query has them.
pub(crate) fn encoded(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("%{byte:02x}"))
}
