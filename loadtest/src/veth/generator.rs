//! The program that makes frames, and the thread that runs it.
//!
//! Each run of the program is one frame, which leaves by the generator's interface, or is dropped:
//! waiting is runs that drop. Every 32nd run decides whether the next 32 leave.
//!
//! ```text
//! R6  the settings and counters (Control)      R8  the frame's end
//! R7  the frame's beginning                    R9  the turn, then the source's address
//! ```

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use skep::sys::affinity::{pin, set_nice};
use skep::sys::xdp::assembler::{Assembler, Condition, Helper, Label, Operation, Register, Width};
use skep::sys::xdp::checksum;
use skep::sys::xdp::kernel::{XdpProgram, XdpVerdict};

use super::frames::{self, ANNOUNCE_FRAME, CONNECT_FRAME, IP, IP_SOURCE, PAYLOAD, UDP};
use super::programs::{
    BATCH, Code, Control, INDEX, Mix, ProgramMaps, Reply, Shape, look_up, network16, network32,
};
use super::weights::GENERATOR_NICE;
use Condition::{AtLeast, AtMost, Equal, NotEqual};
use Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};
use Width::{Byte, Double, Half, Word};

/// Runs in one system call: 30 ms and more.
const RUNS: u32 = 1 << 19;
/// Threads that make frames on one CPU, one at a time: the kernel takes some 25 ms to end a call,
/// for which another thread goes on. No batch is interrupted, so that they share one state.
pub(crate) const SENDERS: usize = 3;
/// How many batches behind its rate the generator may be before it leaves out what was due: with
/// the next one they fill half of an interface's ring.
const BEHIND: i32 = 3;

const CONTEXT: i16 = -16;
const NOW: i16 = -24;

/// Sends on one CPU, until the flag to stop is set.
///
/// # Errors
/// Errors of the system calls.
pub(crate) fn send(program: &XdpProgram, cpu: usize, stop: &AtomicBool) -> io::Result<()> {
    pin(cpu)?;
    set_nice(0, GENERATOR_NICE)?;
    let frame = [0; ANNOUNCE_FRAME as usize];
    while !stop.load(Ordering::Relaxed) {
        program.run_live(&frame, RUNS, BATCH).or_else(|error| match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            _ => Err(error),
        })?;
    }
    Ok(())
}

struct Generator<'a> {
    asm: Assembler,
    shape: &'a Shape,
    maps: ProgramMaps,
    /// Drops the frame.
    idle: Label,
    /// Lets an announce leave, once its id and torrent are in it.
    announced: Label,
}

/// The program.
pub(crate) fn assemble(shape: &Shape, maps: ProgramMaps) -> Code {
    let mut asm = Assembler::new();
    let (idle, announced) = (asm.label(), asm.label());
    let mut this = Generator { asm, shape, maps, idle, announced };
    this.asm.store(Double, R10, CONTEXT, R1);
    this.asm.load(Word, R7, R1, 0);
    this.asm.load(Word, R8, R1, 4);
    this.asm.set(R2, R7);
    this.asm.add(R2, i32::from(ANNOUNCE_FRAME));
    this.asm.jump_if(Condition::Above, R2, R8, idle);
    this.asm.store(Word, R10, INDEX, 0);
    look_up(&mut this.asm, maps.control);
    this.asm.jump_if(Equal, R0, 0, idle);
    this.asm.set(R6, R0);
    this.pace();
    this.request();
    this.asm.place(idle);
    this.asm.set(R0, XdpVerdict::Drop as i32);
    this.asm.exit();
    this.asm.finish()
}

impl Generator<'_> {
    fn get(&mut self, to: Register, which: Control) {
        self.asm.load(Double, to, R6, which.offset());
    }

    fn put(&mut self, which: Control, from: Register) {
        self.asm.store(Double, R6, which.offset(), from);
    }

    /// `to` = a value, which then is one more.
    fn count(&mut self, to: Register, which: Control) {
        self.get(to, which);
        self.asm.set(R4, to);
        self.asm.add(R4, 1);
        self.put(which, R4);
    }

    /// Goes on if this frame leaves, else drops it.
    fn pace(&mut self) {
        let asm = &mut self.asm;
        let (within, closed, active, frame) = (asm.label(), asm.label(), asm.label(), asm.label());
        self.count(R1, Control::Runs);
        self.asm.and(R1, BATCH.cast_signed() - 1);
        self.asm.jump_if(NotEqual, R1, 0, within);
        self.asm.store(Double, R6, Control::IsActive.offset(), 0);
        self.asm.call(Helper::KtimeGetNs);
        self.asm.store(Double, R10, NOW, R0);
        self.get(R1, Control::IntervalNs);
        self.asm.jump_if(Equal, R1, 0, closed);
        self.open_loop();
        self.asm.jump(active);
        self.asm.place(closed);
        self.closed_loop();
        self.asm.place(active);
        self.asm.store(Double, R6, Control::IsActive.offset(), 1);
        self.asm.jump(frame);
        self.asm.place(within);
        self.get(R1, Control::IsActive);
        self.asm.jump_if(Equal, R1, 0, self.idle);
        self.asm.place(frame);
    }

    /// A batch at its time. R0 is the moment, R1 the interval.
    fn open_loop(&mut self) {
        let on_time = self.asm.label();
        self.get(R2, Control::DueNs);
        self.asm.jump_if(Condition::Above, R2, R0, self.idle);
        self.asm.set(R4, R1);
        self.asm.arithmetic(Operation::Multiply, R4, BEHIND);
        self.asm.set(R3, R0);
        self.asm.arithmetic(Operation::Subtract, R3, R4);
        self.asm.jump_if(AtLeast, R2, R3, on_time);
        self.asm.set(R2, R3);
        self.asm.place(on_time);
        self.asm.add(R2, R1);
        self.put(Control::DueNs, R2);
    }

    /// A batch if so many requests may be without a response.
    fn closed_loop(&mut self) {
        let (sane, go) = (self.asm.label(), self.asm.label());
        look_up(&mut self.asm, self.maps.replies);
        self.asm.jump_if(Equal, R0, 0, self.idle);
        self.asm.load(Double, R3, R0, Reply::All.offset());
        self.get(R1, Control::Connects);
        self.get(R2, Control::Announces);
        self.asm.add(R1, R2);
        self.asm.set(R5, R1);
        self.asm.arithmetic(Operation::Subtract, R5, R3);
        self.get(R2, Control::GivenUp);
        self.asm.add(R2, R3);
        // What was given up has come nevertheless.
        self.asm.jump_if(AtMost, R2, R1, sane);
        self.asm.set(R2, R1);
        self.put(Control::GivenUp, R5);
        self.asm.place(sane);
        self.get(R3, Control::InFlight);
        self.asm.add(R2, R3);
        self.asm.add(R1, BATCH.cast_signed());
        self.asm.load(Double, R0, R10, NOW);
        self.asm.jump_if(AtMost, R1, R2, go);
        self.get(R1, Control::LastNs);
        self.get(R4, Control::StallNs);
        self.asm.add(R1, R4);
        self.asm.jump_if(Condition::Above, R1, R0, self.idle);
        self.put(Control::GivenUp, R5);
        self.asm.place(go);
        self.put(Control::LastNs, R0);
    }

    /// Chooses the request, and makes it.
    fn request(&mut self) {
        let asm = &mut self.asm;
        let (pair, honest) = (asm.label(), asm.label());
        let (connect, announce, forged) = (asm.label(), asm.label(), asm.label());
        let not_flood = asm.label();
        self.get(R1, Control::Mix);
        self.asm.jump_if(NotEqual, R1, Mix::Flood as i32, not_flood);
        self.get(R2, Control::UntilHonest);
        self.asm.jump_if(Equal, R2, 0, honest);
        self.asm.arithmetic(Operation::Subtract, R2, 1);
        self.put(Control::UntilHonest, R2);
        self.asm.jump(forged);
        self.asm.place(honest);
        self.get(R2, Control::HonestEvery);
        self.asm.arithmetic(Operation::Subtract, R2, 1);
        self.put(Control::UntilHonest, R2);
        self.asm.jump(pair);
        self.asm.place(not_flood);
        self.asm.jump_if(Equal, R1, Mix::Pairs as i32, pair);
        self.count(R9, Control::Turn);
        self.asm.jump_if(Equal, R1, Mix::Connects as i32, connect);
        self.asm.jump(announce);
        self.asm.place(pair);
        self.count(R9, Control::Turn);
        self.asm.set(R1, R9);
        self.asm.shift_right(R9, 1);
        self.asm.jump_if(Condition::AnyBitSet, R1, 1, announce);
        self.asm.place(connect);
        self.connect();
        self.asm.place(announce);
        self.announce();
        self.asm.place(forged);
        self.forged();
    }

    fn connect(&mut self) {
        self.write(&frames::connect(self.shape.server));
        self.count(R1, Control::Connects);
        self.client_address();
        self.seal(CONNECT_FRAME);
        self.asm.load(Double, R1, R10, CONTEXT);
        self.asm.set(R2, i32::from(CONNECT_FRAME - ANNOUNCE_FRAME));
        self.asm.call(Helper::XdpAdjustTail);
        self.leave();
    }

    fn announce(&mut self) {
        self.write(&frames::announce(self.shape.server, self.shape.numwant));
        self.count(R1, Control::Announces);
        self.asm.set(R1, R9);
        self.asm.and(R1, (1 << self.shape.client_bits) - 1);
        self.asm.store(Word, R10, INDEX, R1);
        look_up(&mut self.asm, self.maps.ids);
        self.asm.jump_if(Equal, R0, 0, self.idle);
        self.asm.load(Double, R1, R0, 0);
        self.asm.store(Double, R7, frames::CONNECTION_ID, R1);
        self.asm.set(R1, R9);
        self.asm.shift_right(R1, frames::SWARM_BITS.cast_signed());
        self.torrent();
        self.client_address();
        self.asm.place(self.announced);
        self.seal(ANNOUNCE_FRAME);
        self.leave();
    }

    /// An announce with a random id, from a random address of the forgers' network.
    fn forged(&mut self) {
        self.write(&frames::announce(self.shape.server, self.shape.numwant));
        self.count(R1, Control::Forged);
        for half in [0, 4] {
            self.asm.call(Helper::GetPrandomU32);
            self.asm.store(Word, R7, frames::CONNECTION_ID + half, R0);
        }
        self.asm.call(Helper::GetPrandomU32);
        self.asm.set(R1, R0);
        self.torrent();
        self.asm.call(Helper::GetPrandomU32);
        self.asm.set(R9, R0);
        self.asm.and(R9, 0xff_ffff);
        self.asm.or(R9, frames::FORGERS.cast_signed());
        self.asm.jump(self.announced);
    }

    /// Writes a whole frame: the memory may hold what a receiver has left in it.
    fn write(&mut self, frame: &[u8]) {
        let mut at = 0;
        let mut rest = frame;
        while let Some((part, after)) = rest.split_first_chunk::<8>() {
            self.asm.set_double(R1, u64::from_ne_bytes(*part));
            self.asm.store(Double, R7, at, R1);
            (at, rest) = (at + 8, after);
        }
        while let Some((part, after)) = rest.split_first_chunk::<2>() {
            self.asm.store(Half, R7, at, i32::from(u16::from_ne_bytes(*part)));
            (at, rest) = (at + 2, after);
        }
        for byte in rest {
            self.asm.store(Byte, R7, at, i32::from(*byte));
            at += 1;
        }
    }

    /// Makes R9 the address of the client whose turn it is.
    fn client_address(&mut self) {
        let bits = self.shape.client_bits.cast_signed();
        self.asm.and(R9, (1 << bits) - 1);
        self.asm.shift_left(R9, 24 - bits);
        self.asm.or(R9, (frames::CLIENTS | 1).cast_signed());
    }

    /// Writes the info-hash of the torrent with the number in R1, modulo their count.
    fn torrent(&mut self) {
        self.asm.and(R1, (1 << self.shape.torrent_bits) - 1);
        self.asm.store(Word, R10, INDEX, R1);
        look_up(&mut self.asm, self.maps.hashes);
        self.asm.jump_if(Equal, R0, 0, self.idle);
        for (width, at) in [(Double, 0), (Double, 8), (Word, 16)] {
            self.asm.load(width, R1, R0, at);
            self.asm.store(width, R7, frames::INFO_HASH + at, R1);
        }
    }

    /// Writes what depends on the address in R9, and the checksums.
    fn seal(&mut self, frame_bytes: i16) {
        self.asm.swap_to_network_order(R9, 32);
        self.asm.store(Word, R7, IP_SOURCE, R9);
        if frame_bytes == ANNOUNCE_FRAME {
            self.asm.store(Word, R7, frames::PEER_ADDRESS, R9);
        }
        self.asm.xor(R9, network32(frames::TRANSACTION_MASK));
        self.asm.store(Word, R7, frames::TRANSACTION_ID, R9);
        self.asm.set(R1, 0);
        checksum::add_words(&mut self.asm, R7, (IP..UDP).step_by(4));
        self.complement();
        self.asm.store(Half, R7, IP + 10, R1);
        // UDP's covers both addresses, its number and its length, which is in it twice.
        self.asm.set(R1, network16(17));
        self.asm.load(Half, R2, R7, UDP + 4);
        self.asm.add(R1, R2);
        checksum::add_words(&mut self.asm, R7, (IP_SOURCE..UDP).step_by(4));
        let words = UDP..frame_bytes - (frame_bytes - PAYLOAD) % 4;
        checksum::add_words(&mut self.asm, R7, words.step_by(4));
        if frame_bytes == ANNOUNCE_FRAME {
            self.asm.load(Half, R2, R7, frame_bytes - 2);
            self.asm.add(R1, R2);
        }
        self.complement();
        let is_set = self.asm.label();
        self.asm.jump_if(NotEqual, R1, 0, is_set);
        self.asm.set(R1, 0xffff);
        self.asm.place(is_set);
        self.asm.store(Half, R7, UDP + 6, R1);
    }

    /// Makes R1 the Internet's checksum (RFC 1071) of what was summed up in it.
    fn complement(&mut self) {
        checksum::fold(&mut self.asm);
        self.asm.xor(R1, 0xffff);
    }

    /// Sends the frame.
    fn leave(&mut self) {
        self.asm.set(R1, self.shape.interface.cast_signed());
        self.asm.set(R2, 0);
        self.asm.call(Helper::Redirect);
        self.asm.exit();
    }
}
