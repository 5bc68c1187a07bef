//! The opening handshake of a WebSocket (RFC 6455, 4.2), on any path: tracker URLs in use have
//! various paths or none.

use tungstenite::handshake::derive_accept_key;

use super::ReceiveOutcome;
use super::request::HttpRequest;
use crate::protocol::passkey::{self, Passkey};
use crate::types::{Refusal, Rejected};

/// Bytes of a `Sec-WebSocket-Key`: 16 in base64.
const KEY_BYTES: usize = 24;

/// Responds to a request for a WebSocket. Extensions and subprotocols are not negotiated.
pub(super) fn respond(request: &HttpRequest<'_>, out: &mut Vec<u8>) -> ReceiveOutcome {
    if request.fields.websocket_version != Some(b"13") {
        return request.reject_and_close(Rejected::BadUpgrade, out);
    }
    let Some(key) = request.fields.websocket_key.filter(|it| is_key(it)) else {
        return request.reject_because("Sec-WebSocket-Key is not 16 bytes in base64.\n", out);
    };
    let Some(source) = request.source else {
        return request.refuse_upgrade(Refusal::NoSource, out);
    };
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n");
    out.extend_from_slice(b"Connection: Upgrade\r\nSec-WebSocket-Accept: ");
    out.extend_from_slice(derive_accept_key(key).as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
    let passkey = passkey::of_path(request.head.path).and_then(Passkey::new);
    ReceiveOutcome::Upgraded { consumed: request.head.bytes, source, passkey }
}

fn is_key(key: &[u8]) -> bool {
    let is_digit = |it: &u8| it.is_ascii_alphanumeric() || matches!(it, b'+' | b'/');
    key.len() == KEY_BYTES && key.ends_with(b"==") && key[..KEY_BYTES - 2].iter().all(is_digit)
}
