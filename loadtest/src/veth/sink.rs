//! The program that takes responses on the generator's side: counts them by kind, checks each,
//! remembers connection ids, and drops all but a sample, which sockets then see.
//!
//! Of each response it checks the addresses, the lengths in IP and UDP against the frame and
//! against the action, and that the transaction id is the client's. What an announce's response
//! contains is checked in the sample alone.
//!
//! ```text
//! R6  the counters (Reply)             R8  the frame's end, then the entry of the client
//! R7  the frame's beginning            R9  bytes of the datagram with its UDP header
//! ```

use skep::sys::xdp::assembler::{Assembler, Condition, Label, Operand, Operation, Register, Width};
use skep::sys::xdp::kernel::XdpVerdict;

use super::frames::{self, CONNECT_FRAME, IP, PAYLOAD, UDP};
use super::programs::{Code, INDEX, ProgramMaps, Reply, Shape, look_up, network16, network32};
use Condition::{Above, AnyBitSet, AtLeast, Below, Equal, NotEqual};
use Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};
use Width::{Byte, Double, Half, Word};

/// Bytes of a UDP header.
const HEADER: i32 = 8;
/// Bytes of responses: to a connect, to an announce without peers; of a peer.
const CONNECTED: i32 = 16;
const ANNOUNCED: i32 = 20;
const PEER: i32 = 6;
/// Bytes that every response has.
const LEAST: i32 = 8;

struct Sink<'a> {
    asm: Assembler,
    shape: &'a Shape,
    maps: ProgramMaps,
    pass: Label,
    invalid: Label,
    end: Label,
}

/// The program.
pub(crate) fn assemble(shape: &Shape, maps: ProgramMaps) -> Code {
    let mut asm = Assembler::new();
    let (pass, invalid, end) = (asm.label(), asm.label(), asm.label());
    let mut this = Sink { asm, shape, maps, pass, invalid, end };
    this.response();
    this.client();
    this.kind();
    this.asm.place(invalid);
    this.count(Reply::Invalid, Reply::InvalidBytes, true);
    this.asm.place(end);
    this.sample();
    this.asm.place(pass);
    this.asm.set(R0, XdpVerdict::Pass as i32);
    this.asm.exit();
    this.asm.finish()
}

impl Sink<'_> {
    /// Passes whatever the tracker did not send. Leaves the length in R9.
    fn response(&mut self) {
        let server = self.shape.server;
        self.asm.load(Word, R7, R1, 0);
        self.asm.load(Word, R8, R1, 4);
        self.asm.set(R2, R7);
        self.asm.add(R2, i32::from(PAYLOAD) + LEAST);
        self.asm.jump_if(Above, R2, R8, self.pass);
        for (width, at, value) in [
            (Half, IP - 2, network16(0x0800)),
            (Byte, IP, 0x45),
            (Byte, IP + 9, 17),
            (Half, UDP, network16(server.port())),
        ] {
            self.asm.load(width, R3, R7, at);
            self.asm.jump_if(NotEqual, R3, value, self.pass);
        }
        self.asm.load(Word, R3, R7, IP + 12);
        self.asm.jump_if_word(NotEqual, R3, network32((*server.ip()).into()), self.pass);
        self.asm.store(Word, R10, INDEX, 0);
        look_up(&mut self.asm, self.maps.replies);
        self.asm.jump_if(Equal, R0, 0, self.pass);
        self.asm.set(R6, R0);
        self.asm.load(Half, R9, R7, UDP + 4);
        self.asm.swap_to_network_order(R9, 16);
        self.asm.and(R9, 0xffff);
    }

    /// Checks addresses and lengths. Leaves the client's number in [`INDEX`].
    fn client(&mut self) {
        let honest = self.asm.label();
        self.asm.load(Half, R3, R7, IP + 2);
        self.asm.swap_to_network_order(R3, 16);
        self.asm.arithmetic(Operation::Subtract, R3, 20);
        self.asm.load(Word, R5, R7, IP + 16);
        self.asm.set(R4, R5);
        self.asm.swap_to_network_order(R5, 32);
        self.asm.set(R1, R5);
        self.asm.shift_right(R1, 24);
        self.asm.jump_if(NotEqual, R1, (frames::FORGERS >> 24).cast_signed(), honest);
        self.count(Reply::Forged, Reply::ForgedBytes, false);
        self.asm.jump(self.end);
        self.asm.place(honest);
        self.asm.jump_if(NotEqual, R3, R9, self.invalid);
        self.asm.set(R2, R7);
        self.asm.add(R2, i32::from(UDP));
        self.asm.add(R2, R9);
        self.asm.jump_if(Above, R2, R8, self.invalid);
        self.asm.jump_if(Below, R9, HEADER + LEAST, self.invalid);
        self.asm.load(Half, R3, R7, UDP + 2);
        self.asm.jump_if(NotEqual, R3, network16(frames::CLIENT_PORT), self.invalid);
        self.asm.load(Word, R3, R7, PAYLOAD + 4);
        self.asm.xor(R4, R3);
        self.asm.jump_if_word(NotEqual, R4, network32(frames::TRANSACTION_MASK), self.invalid);
        let bits = self.shape.client_bits.cast_signed();
        self.asm.xor(R5, (frames::CLIENTS | 1).cast_signed());
        self.asm.set(R1, R5);
        self.asm.shift_right(R1, 24 - bits);
        self.asm.jump_if(AtLeast, R1, 1 << bits, self.invalid);
        self.asm.store(Word, R10, INDEX, R1);
        self.asm.shift_left(R1, 24 - bits);
        self.asm.jump_if(NotEqual, R1, R5, self.invalid);
    }

    /// Checks the length by the action.
    fn kind(&mut self) {
        let (connect, announce) = (self.asm.label(), self.asm.label());
        self.asm.load(Word, R3, R7, PAYLOAD);
        self.asm.jump_if(Equal, R3, 0, connect);
        self.asm.jump_if_word(Equal, R3, network32(1), announce);
        self.asm.jump_if_word(NotEqual, R3, network32(3), self.invalid);
        self.count(Reply::Errors, Reply::ErrorBytes, true);
        self.asm.jump(self.end);
        self.asm.place(announce);
        self.asm.jump_if(Below, R9, HEADER + ANNOUNCED, self.invalid);
        self.asm.set(R1, R9);
        self.asm.arithmetic(Operation::Subtract, R1, HEADER + ANNOUNCED);
        self.asm.jump_if(Above, R1, PEER * i32::from(self.shape.numwant), self.invalid);
        self.asm.set(R2, R1);
        self.asm.arithmetic(Operation::Divide, R2, PEER);
        self.asm.arithmetic(Operation::Multiply, R2, PEER);
        self.asm.jump_if(NotEqual, R1, R2, self.invalid);
        self.count(Reply::Announces, Reply::AnnounceBytes, true);
        self.asm.jump(self.end);
        self.asm.place(connect);
        self.connected();
        self.asm.jump(self.end);
    }

    /// Remembers the id.
    fn connected(&mut self) {
        let is_known = self.asm.label();
        self.asm.jump_if(NotEqual, R9, HEADER + CONNECTED, self.invalid);
        self.asm.set(R2, R7);
        self.asm.add(R2, i32::from(CONNECT_FRAME));
        self.asm.jump_if(Above, R2, R8, self.invalid);
        look_up(&mut self.asm, self.maps.ids);
        self.asm.jump_if(Equal, R0, 0, self.invalid);
        self.asm.load(Double, R3, R7, PAYLOAD + 8);
        self.asm.store(Double, R0, 0, R3);
        self.asm.load(Double, R1, R0, 8);
        self.asm.store(Double, R0, 8, 1);
        self.asm.jump_if(NotEqual, R1, 0, is_known);
        self.add(Reply::Known, 1);
        self.asm.place(is_known);
        self.count(Reply::Connects, Reply::ConnectBytes, true);
    }

    fn add(&mut self, which: Reply, by: impl Into<Operand>) {
        self.asm.load(Double, R1, R6, which.offset());
        self.asm.add(R1, by);
        self.asm.store(Double, R6, which.offset(), R1);
    }

    fn count(&mut self, responses: Reply, bytes: Reply, is_to_client: bool) {
        self.add(responses, 1);
        self.add(bytes, R9);
        self.add(bytes, -HEADER);
        if is_to_client {
            self.add(Reply::All, 1);
        }
    }

    /// Passes one of many, and drops the others.
    fn sample(&mut self) {
        self.add(Reply::Seen, 1);
        let others = self.shape.sample_every.cast_signed() - 1;
        if others == 0 {
            return;
        }
        let dropped = self.asm.label();
        self.asm.jump_if(AnyBitSet, R1, others, dropped);
        self.asm.jump(self.pass);
        self.asm.place(dropped);
        self.asm.set(R0, XdpVerdict::Drop as i32);
        self.asm.exit();
    }
}
