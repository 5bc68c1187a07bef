//! WebSocket frames (RFC 6455) of a server: read from the front of a receive buffer, in place, and
//! appended to a send buffer.
//!
//! tungstenite parses and writes the heads of frames. Its `WebSocketContext` would do more, but it
//! keeps the memory of a socket's longest message as long as the socket is open. Here a socket that
//! waits keeps nothing.
#![warn(clippy::indexing_slicing)]

use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::frontend::ws::MESSAGE_BYTES_MAX;

/// The longest head of a frame from a client.
pub(super) const HEAD_BYTES_MAX: usize = 14;

/// The longest payload of a ping, pong or close (RFC 6455, 5.5).
const CONTROL_BYTES_MAX: usize = 125;

/// What is at the front of the received bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FrameStep<'a> {
    /// Not a whole frame. The frame has at least this many bytes.
    Partial(usize),
    /// A frame of this many bytes, head included, and its event.
    Frame(usize, FrameEvent<'a>),
}

/// What a frame contains.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FrameEvent<'a> {
    /// A message is complete, text or binary.
    Message(&'a [u8]),
    /// A message continues in the next frame.
    Fragment,
    /// The client expects the same payload in a pong.
    Ping(&'a [u8]),
    /// The client is alive.
    Pong,
    /// The client closes, with this status.
    Close(Option<u16>),
}

/// Why a socket has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameError {
    /// The frame violates the protocol.
    Protocol,
    /// The message is longer than the limit.
    TooLong,
}

impl FrameError {
    /// The status that is sent to the client (RFC 6455, 7.4.1).
    pub(super) fn status(self) -> u16 {
        match self {
            Self::Protocol => 1002,
            Self::TooLong => 1009,
        }
    }
}

/// The fragments of a message, kept from one frame to the next.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    bytes: Vec<u8>,
    /// Whether a first fragment has arrived, which may be empty.
    begun: bool,
}

impl Fragments {
    /// Whether a message has begun and not ended.
    pub(super) fn are_pending(&self) -> bool {
        self.begun
    }

    /// Bytes that the fragments take.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Takes the first frame from `input`, which it unmasks in place.
    ///
    /// # Errors
    /// [`FrameError`], as soon as the received bytes show it.
    pub(super) fn take<'a>(&'a mut self, input: &'a mut [u8]) -> Result<FrameStep<'a>, FrameError> {
        let mut cursor = Cursor::new(&*input);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| FrameError::Protocol)?;
        let Some((head, length)) = parsed else { return Ok(FrameStep::Partial(HEAD_BYTES_MAX)) };
        let head_bytes = usize::try_from(cursor.position()).map_err(|_| FrameError::TooLong)?;
        let length = usize::try_from(length).map_err(|_| FrameError::TooLong)?;
        let mask = self.check(&head, length)?;
        let Some(payload) = input.get_mut(head_bytes..head_bytes + length) else {
            return Ok(FrameStep::Partial(head_bytes + length));
        };
        unmask(payload, mask);
        let event = match head.opcode {
            OpCode::Control(Control::Ping) => FrameEvent::Ping(payload),
            OpCode::Control(Control::Pong) => FrameEvent::Pong,
            OpCode::Control(_) => FrameEvent::Close(status_of(payload)?),
            OpCode::Data(_) => self.message(head.is_final, payload),
        };
        Ok(FrameStep::Frame(head_bytes + length, event))
    }

    /// Checks a frame by its head (RFC 6455, 5.2, 5.4 and 5.5). Returns the mask, which every frame
    /// of a client must have (5.3).
    fn check(&self, head: &FrameHeader, length: usize) -> Result<[u8; 4], FrameError> {
        if head.rsv1 || head.rsv2 || head.rsv3 {
            return Err(FrameError::Protocol); // no extension was negotiated
        }
        let fits = match head.opcode {
            OpCode::Control(Control::Reserved(_)) | OpCode::Data(Data::Reserved(_)) => false,
            OpCode::Control(_) => head.is_final && length <= CONTROL_BYTES_MAX,
            OpCode::Data(Data::Continue) => self.begun,
            OpCode::Data(_) => !self.begun,
        };
        let mask = head.mask.filter(|_| fits).ok_or(FrameError::Protocol)?;
        if length > MESSAGE_BYTES_MAX - self.bytes.len() {
            return Err(FrameError::TooLong);
        }
        Ok(mask)
    }

    fn message<'a>(&'a mut self, is_final: bool, payload: &'a [u8]) -> FrameEvent<'a> {
        if is_final && !self.begun {
            return FrameEvent::Message(payload);
        }
        self.bytes.extend_from_slice(payload);
        self.begun = !is_final;
        if is_final { FrameEvent::Message(&self.bytes) } else { FrameEvent::Fragment }
    }

    /// Frees the memory of a message that was taken.
    pub(super) fn forget(&mut self) {
        if !self.begun {
            self.bytes = Vec::new();
        }
    }
}

/// The status of a close: none, or two bytes that are allowed on the wire (RFC 6455, 7.4).
fn status_of(payload: &[u8]) -> Result<Option<u16>, FrameError> {
    let Some((status, _)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(FrameError::Protocol) };
    };
    match u16::from_be_bytes(*status) {
        value @ (1000..=1003 | 1007..=1014 | 3000..=4999) => Ok(Some(value)),
        _ => Err(FrameError::Protocol),
    }
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let (words, rest) = payload.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

/// Bytes that a text message takes on the wire, at most.
pub(super) fn framed_bytes_max(message: &[u8]) -> usize {
    message.len() + HEAD_BYTES_MAX
}

/// Appends a text message.
pub(super) fn write_text(out: &mut Vec<u8>, message: &[u8]) {
    write(out, OpCode::Data(Data::Text), message);
}

/// Appends a ping.
pub(super) fn write_ping(out: &mut Vec<u8>) {
    write(out, OpCode::Control(Control::Ping), &[]);
}

/// Appends a pong, the response to a ping.
pub(super) fn write_pong(out: &mut Vec<u8>, payload: &[u8]) {
    write(out, OpCode::Control(Control::Pong), payload);
}

/// Appends a close.
pub(super) fn write_close(out: &mut Vec<u8>, status: Option<u16>) {
    let status = status.map(u16::to_be_bytes);
    write(out, OpCode::Control(Control::Close), status.as_ref().map_or(&[], |it| &it[..]));
}

fn write(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    out.reserve(framed_bytes_max(payload));
    let head = FrameHeader { is_final: true, opcode, ..FrameHeader::default() };
    let written = head.format(payload.len() as u64, out);
    debug_assert!(written.is_ok(), "a vector takes everything");
    out.extend_from_slice(payload);
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test that misses its place has failed")]
mod tests {
    use proptest::prelude::*;
    use tungstenite::protocol::frame::Frame;

    use super::*;

    const MASK: [u8; 4] = [1, 0x80, 3, 0xff];

    /// A frame as a client sends it, written by tungstenite.
    fn frame(opcode: OpCode, is_final: bool, payload: &[u8]) -> Vec<u8> {
        let head = FrameHeader { is_final, opcode, mask: Some(MASK), ..FrameHeader::default() };
        let mut bytes = Vec::new();
        Frame::from_payload(head, payload.to_vec().into()).format(&mut bytes).unwrap();
        bytes
    }

    const TEXT: OpCode = OpCode::Data(Data::Text);
    const MORE: OpCode = OpCode::Data(Data::Continue);
    const PING: OpCode = OpCode::Control(Control::Ping);
    const CLOSE: OpCode = OpCode::Control(Control::Close);

    fn error(bytes: &mut [u8]) -> Option<FrameError> {
        Fragments::default().take(bytes).err()
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in(text in prop::collection::vec(any::<u8>(), 0..300)) {
            for opcode in [TEXT, OpCode::Data(Data::Binary)] {
                let mut bytes = frame(opcode, true, &text);
                let whole = bytes.len();
                for end in 0..whole {
                    let mut part = bytes[..end].to_vec();
                    let mut fragments = Fragments::default();
                    let step = fragments.take(&mut part).map(|frame_step| match frame_step {
                        FrameStep::Partial(needed) => needed > end,
                        FrameStep::Frame(..) => false,
                    });
                    prop_assert_eq!(step, Ok(true));
                }
                bytes.push(7);
                let mut fragments = Fragments::default();
                let step = fragments.take(&mut bytes);
                prop_assert_eq!(step, Ok(FrameStep::Frame(whole, FrameEvent::Message(&text))));
            }
        }

        #[test]
        fn no_bytes_panic_or_want_more_than_the_limit(
            mut bytes in prop::collection::vec(any::<u8>(), 0..40)
        ) {
            let mut fragments = Fragments::default();
            let end = bytes.len();
            match fragments.take(&mut bytes) {
                Ok(FrameStep::Partial(needed)) => {
                    prop_assert!(needed > end && needed <= MESSAGE_BYTES_MAX + HEAD_BYTES_MAX);
                }
                Ok(FrameStep::Frame(taken, _)) => prop_assert!(taken >= 2 && taken <= end),
                Err(_) => {}
            }
        }
    }

    #[test]
    fn fragments_make_one_message_with_control_frames_between() {
        let mut fragments = Fragments::default();
        let mut take = |mut bytes: Vec<u8>| match fragments.take(&mut bytes).unwrap() {
            FrameStep::Frame(_, event) => format!("{event:?}"),
            FrameStep::Partial(_) => panic!("whole frames"),
        };
        assert_eq!(take(frame(TEXT, false, b"ab")), "Fragment");
        assert_eq!(take(frame(PING, true, b"x")), "Ping([120])");
        assert_eq!(take(frame(MORE, false, b"")), "Fragment");
        assert_eq!(take(frame(MORE, true, b"c")), "Message([97, 98, 99])");
        fragments.forget();
        assert!(!fragments.are_pending() && fragments.bytes.capacity() == 0);
    }

    #[test]
    fn frames_that_break_the_protocol_are_seen() {
        let mut unmasked = frame(TEXT, true, b"a");
        unmasked[1] &= 0x7f;
        assert_eq!(error(&mut unmasked), Some(FrameError::Protocol));
        for bit in [0x40, 0x20, 0x10] {
            let mut reserved = frame(TEXT, true, b"a");
            reserved[0] |= bit;
            assert_eq!(error(&mut reserved), Some(FrameError::Protocol));
        }
        for opcode in [3, 7, 11, 15] {
            assert_eq!(error(&mut [0x80 | opcode, 0x80, 0, 0, 0, 0]), Some(FrameError::Protocol));
        }
        assert_eq!(error(&mut frame(MORE, true, b"a")), Some(FrameError::Protocol));
        assert_eq!(error(&mut frame(PING, false, b"")), Some(FrameError::Protocol));
        assert_eq!(error(&mut frame(PING, true, &[0; 126])), Some(FrameError::Protocol));
        for close in [&[3][..], &[0, 0], &999_u16.to_be_bytes(), &1005_u16.to_be_bytes()] {
            assert_eq!(error(&mut frame(CLOSE, true, close)), Some(FrameError::Protocol));
        }
        let mut fragments = Fragments::default();
        fragments.take(&mut frame(TEXT, false, b"a")).unwrap();
        assert_eq!(fragments.take(&mut frame(TEXT, true, b"b")), Err(FrameError::Protocol));
    }

    #[test]
    fn what_is_too_long_is_seen_before_it_is_there() {
        let long = frame(TEXT, true, &vec![0; MESSAGE_BYTES_MAX + 1]);
        assert_eq!(error(&mut long[..14].to_vec()), Some(FrameError::TooLong));
        let mut fragments = Fragments::default();
        fragments.take(&mut frame(TEXT, false, &vec![0; MESSAGE_BYTES_MAX])).unwrap();
        let more = frame(MORE, true, &[0]);
        assert_eq!(fragments.take(&mut more[..6].to_vec()), Err(FrameError::TooLong));
        let longest = frame(TEXT, true, &vec![0; MESSAGE_BYTES_MAX]);
        assert_eq!(
            Fragments::default().take(&mut longest[..14].to_vec()),
            Ok(FrameStep::Partial(longest.len()))
        );
    }

    #[test]
    fn a_close_brings_its_status() {
        for (payload, status) in [(&b""[..], None), (b"\x03\xe8bye", Some(1000))] {
            let mut bytes = frame(CLOSE, true, payload);
            let whole = bytes.len();
            let step = Fragments::default().take(&mut bytes).map(|it| format!("{it:?}"));
            assert_eq!(
                step.unwrap(),
                format!("{:?}", FrameStep::Frame(whole, FrameEvent::Close(status)))
            );
        }
    }

    #[test]
    fn what_is_written_is_what_the_rfc_says() {
        let mut out = Vec::new();
        write_text(&mut out, b"Hello");
        write_ping(&mut out);
        write_pong(&mut out, b"x");
        write_close(&mut out, Some(1009));
        write_close(&mut out, None);
        assert_eq!(out, b"\x81\x05Hello\x89\x00\x8a\x01x\x88\x02\x03\xf1\x88\x00");
        let mut long = Vec::new();
        write_text(&mut long, &[b'a'; 300]);
        assert_eq!(long[..4], [0x81, 126, 1, 44]);
    }
}
