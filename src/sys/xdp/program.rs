//! The code of the offload: what [`super::offload`] describes, in instructions.
//!
//! ```text
//! R6  the settings            R8  the frame's end
//! R7  the frame's beginning   R9  the UDP header, once it is found
//! ```

use super::assembler::{
    Assembler, Condition, Helper, Instruction, Label, Operation, Register, Width,
};
use super::checksum;
use super::kernel::XdpVerdict;
use super::offload::{Field, LOAD_BITS, OffloadVerdict, SLIP_BITS};
use super::siphash;
use super::umem::RECEIVED_BYTES_MAX;
use Condition::{Above, AnyBitSet, AtLeast, AtMost, Below, Equal, NotEqual};
use Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10};
use Width::{Byte, Double, Half, Word};

/// Descriptors of the maps.
#[derive(Clone, Copy)]
pub(super) struct ProgramMaps {
    pub(super) targets: i32,
    pub(super) denied: i32,
    pub(super) exempt: i32,
    pub(super) settings: i32,
    pub(super) current: i32,
    pub(super) loads: i32,
    pub(super) slips: i32,
    pub(super) counters: i32,
    /// AF_XDP sockets by receive queue.
    pub(super) sockets: i32,
}

/// Seconds in a bucket of connection ids, and which of them are accepted: as
/// `frontend::connection_id` has it, with which a test compares the program.
const BUCKET_NS: u64 = 64_000_000_000;
const BUCKETS_AHEAD: i32 = 1;
const BUCKETS_BACK: i32 = 2;
const BUCKET_BITS: i32 = 3;
/// Of connects over the limit from one address and port, one of so many is answered: a power of 2.
const SLIP_EACH: i32 = 4;
/// Hops of a response: the usual of Linux.
const HOPS: i32 = 64;

// What a datagram begins with (BEP 15), and how long an announce is, and a scrape of one torrent.
const MAGIC: u64 = 0x0417_2710_1980;
const CONNECT_BYTES: i32 = 16;
const ANNOUNCE_BYTES: i32 = 98;
const SCRAPE_BYTES: i32 = 16;

const UDP_HEADER: i32 = 8;
const IPV4_HEADER: i16 = 20;
const IPV6_HEADER: i16 = 40;
const UDP: i32 = 17;

// The stack, by offsets from R10. Addresses are 16 bytes, those of IPv4 mapped.
/// The key of an array: 4 bytes.
const INDEX: i16 = -8;
/// The source's network, as connection ids have it.
const NETWORK: i16 = -24;
/// A key of the targets: the destination's address, its port, 2 bytes of padding.
const TARGET: i16 = -48;
/// A key of prefixes: 4 bytes of length, then the source's address.
const PREFIX: i16 = -72;
const SOURCE: i16 = PREFIX + 4;
/// The length that the UDP header has.
const UDP_BYTES: i16 = -80;
const ID: i16 = -88;
/// How many buckets before the newest an id's is.
const BACK: i16 = -96;
const BUCKET: i16 = -104;
/// 1 for IPv4, 0 for IPv6.
const IS_V4: i16 = -112;
const NOW: i16 = -120;
/// Pointers to the loads of the source's prefixes.
const PLACES: i16 = -160;
/// The source's first 64 bits in the host's order; an IPv4 address is the upper half.
const HIGH: i16 = -168;
const VERDICT: i16 = -176;
/// What the kernel gave the program.
const CONTEXT: i16 = -184;
/// What the kernel's routes are asked, and say.
const ROUTE: i16 = -248;
/// Bytes before the IP header.
const LINK_BYTES: i16 = -256;

// Offsets in the context (linux/bpf.h, xdp_md) and in a question for a route (bpf_fib_lookup).
const CONTEXT_INTERFACE: i16 = 12;
const CONTEXT_QUEUE: i16 = 16;
const ROUTE_BYTES: i16 = 64;
/// What is before the stations of the answer.
const ROUTE_BYTES_ASKED: i16 = 48;
const ROUTE_PROTOCOL: i16 = 1;
const ROUTE_INTERFACE: i16 = 8;
const ROUTE_FROM: i16 = 16;
const ROUTE_TO: i16 = 32;
const ROUTE_OUR_MAC: i16 = 52;
const ROUTE_NEXT_MAC: i16 = 58;

/// A network around a source: how far [`HIGH`] is shifted to be it, and the multiple of the limit
/// of one address that it has. The same as in `limiter::prefix`.
struct Prefix {
    shift: i32,
    times: i32,
}

const fn prefix(shift: i32, times: i32) -> Prefix {
    Prefix { shift, times }
}

const V4: [Prefix; 4] = [prefix(32, 1), prefix(40, 32), prefix(44, 256), prefix(46, 768)];
/// The address itself is first, and has the lower half in its hash.
const V6: [Prefix; 5] = [prefix(0, 1), prefix(0, 2), prefix(8, 3), prefix(16, 4), prefix(32, 64)];

/// Odd factors with bits all over, for the hash of prefixes.
const FACTORS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];

/// A number of 16 bits in the network's order, as a load reads it.
const fn network16(value: u16) -> i32 {
    value.to_be() as i32
}

/// A number of 32 bits in the network's order, as a load of 4 bytes reads it.
const fn network32(value: u32) -> i32 {
    value.to_be().cast_signed()
}

struct Offloader {
    asm: Assembler,
    maps: ProgramMaps,
    pass: Label,
    /// Where [`INDEX`] is counted and `R6` is returned.
    end: Label,
    siphash: Label,
}

/// The program.
pub(super) fn assemble(maps: ProgramMaps) -> Vec<Instruction> {
    let mut asm = Assembler::new();
    let (pass, end, siphash) = (asm.label(), asm.label(), asm.label());
    let mut this = Offloader { asm, maps, pass, end, siphash };
    this.frame();
    this.target();
    this.datagram();
    this.count();
    this.asm.place(pass);
    this.asm.set(R0, XdpVerdict::Pass as i32);
    this.asm.exit();
    siphash::emit(&mut this.asm, siphash);
    this.asm.finish()
}

impl Offloader {
    /// Passes unless `bytes` lie behind a pointer into the frame.
    fn need(&mut self, pointer: Register, bytes: i32) {
        self.asm.set(R2, pointer);
        self.asm.add(R2, bytes);
        self.asm.jump_if(Above, R2, R8, self.pass);
    }

    /// Passes unless a register has this value.
    fn need_equal(&mut self, register: Register, value: i32) {
        self.asm.jump_if(NotEqual, register, value, self.pass);
    }

    fn look_up(&mut self, map: i32, key: i16) {
        self.asm.set_map(R1, map);
        self.asm.set(R2, R10);
        self.asm.add(R2, i32::from(key));
        self.asm.call(Helper::MapLookupElem);
    }

    /// Ethernet, a VLAN tag, IP: leaves R9 at the UDP header and R4 at the bytes behind IP's.
    fn frame(&mut self) {
        let (v4, v6, udp) = (self.asm.label(), self.asm.label(), self.asm.label());
        self.asm.store(Double, R10, CONTEXT, R1);
        self.asm.load(Word, R7, R1, 0);
        self.asm.load(Word, R8, R1, 4);
        self.need(R7, 14);
        // A frame to all or to many is none of ours to answer.
        self.asm.load(Byte, R3, R7, 0);
        self.asm.jump_if(AnyBitSet, R3, 1, self.pass);
        self.asm.load(Half, R3, R7, 12);
        self.asm.set(R9, R7);
        self.asm.add(R9, 14);
        self.asm.store(Double, R10, LINK_BYTES, 14);
        let untagged = self.asm.label();
        self.asm.jump_if(NotEqual, R3, network16(0x8100), untagged);
        self.need(R7, 18);
        self.asm.load(Half, R3, R7, 16);
        self.asm.add(R9, 4);
        self.asm.store(Double, R10, LINK_BYTES, 18);
        self.asm.place(untagged);
        self.asm.jump_if(Equal, R3, network16(0x0800), v4);
        self.asm.jump_if(Equal, R3, network16(0x86dd), v6);
        self.asm.jump(self.pass);
        self.asm.place(v4);
        self.ipv4();
        self.asm.jump(udp);
        self.asm.place(v6);
        self.ipv6();
        self.asm.place(udp);
    }

    fn ipv4(&mut self) {
        self.need(R9, i32::from(IPV4_HEADER));
        self.asm.load(Byte, R3, R9, 0);
        self.need_equal(R3, 0x45);
        self.asm.load(Byte, R3, R9, 9);
        self.need_equal(R3, UDP);
        // All but "do not fragment": an offset, more to come, the reserved bit.
        self.asm.load(Half, R3, R9, 6);
        self.asm.jump_if(AnyBitSet, R3, network16(0xbfff), self.pass);
        // No host has an address from 224.0.0.0 on, or one that begins with 0.
        self.asm.load(Byte, R3, R9, 12);
        self.asm.jump_if(AtLeast, R3, 224, self.pass);
        self.asm.jump_if(Equal, R3, 0, self.pass);
        self.sum(R9, (0..IPV4_HEADER).step_by(4));
        checksum::fold(&mut self.asm);
        self.need_equal(R1, 0xffff);
        for (place, from) in [(TARGET, 16), (SOURCE, 12)] {
            self.asm.load(Word, R3, R9, from);
            self.asm.store(Word, R10, place, 0);
            self.asm.store(Word, R10, place + 4, 0);
            self.asm.store(Word, R10, place + 8, network32(0xffff));
            self.asm.store(Word, R10, place + 12, R3);
        }
        // R3 is the source.
        self.asm.store(Double, R10, NETWORK, 0);
        self.asm.store(Word, R10, NETWORK + 8, network32(0xffff));
        self.asm.store(Word, R10, NETWORK + 12, R3);
        self.asm.swap_to_network_order(R3, 32);
        self.asm.shift_left(R3, 32);
        self.asm.store(Double, R10, HIGH, R3);
        self.asm.store(Double, R10, IS_V4, 1);
        self.asm.load(Half, R4, R9, 2);
        self.asm.swap_to_network_order(R4, 16);
        self.asm.arithmetic(Operation::Subtract, R4, i32::from(IPV4_HEADER));
        self.asm.add(R9, i32::from(IPV4_HEADER));
    }

    fn ipv6(&mut self) {
        self.need(R9, i32::from(IPV6_HEADER));
        self.asm.load(Byte, R3, R9, 0);
        self.asm.and(R3, 0xf0);
        self.need_equal(R3, 0x60);
        self.asm.load(Byte, R3, R9, 6);
        self.need_equal(R3, UDP);
        self.asm.load(Byte, R3, R9, 8);
        self.asm.jump_if(Equal, R3, 0xff, self.pass);
        for (place, from) in [(TARGET, 24), (SOURCE, 8)] {
            for word in (0..16).step_by(4) {
                self.asm.load(Word, R3, R9, from + word);
                self.asm.store(Word, R10, place + word, R3);
            }
        }
        self.ipv6_network();
        self.asm.store(Double, R10, IS_V4, 0);
        self.asm.load(Half, R4, R9, 4);
        self.asm.swap_to_network_order(R4, 16);
        self.asm.add(R9, i32::from(IPV6_HEADER));
    }

    /// The /64 of the source; the whole address where its second half holds an IPv4 address.
    fn ipv6_network(&mut self) {
        let (is_whole, stored) = (self.asm.label(), self.asm.label());
        self.asm.load(Word, R3, R9, 8);
        self.asm.load(Word, R5, R9, 12);
        self.asm.store(Word, R10, NETWORK, R3);
        self.asm.store(Word, R10, NETWORK + 4, R5);
        // Addresses that begin with 64 zeros are IPv4's, this host's own, or none.
        self.asm.or(R5, R3);
        self.asm.jump_if(Equal, R5, 0, self.pass);
        self.asm.jump_if_word(Equal, R3, network32(0x0064_ff9b), is_whole);
        self.asm.jump_if_word(Equal, R3, network32(0x2001_0000), is_whole);
        self.asm.store(Double, R10, NETWORK + 8, 0);
        self.asm.jump(stored);
        self.asm.place(is_whole);
        self.asm.load(Word, R3, R9, 16);
        self.asm.load(Word, R5, R9, 20);
        self.asm.store(Word, R10, NETWORK + 8, R3);
        self.asm.store(Word, R10, NETWORK + 12, R5);
        self.asm.place(stored);
        self.asm.load(Double, R3, R10, NETWORK);
        self.asm.swap_to_network_order(R3, 64);
        self.asm.store(Double, R10, HIGH, R3);
    }

    /// UDP to one of our addresses, from a network that is not denied. R6 are the settings then.
    fn target(&mut self) {
        self.need(R9, UDP_HEADER);
        self.asm.load(Half, R5, R9, 4);
        self.asm.swap_to_network_order(R5, 16);
        // Neither a jumbogram nor anything behind the datagram.
        self.asm.jump_if(NotEqual, R5, R4, self.pass);
        self.asm.store(Double, R10, UDP_BYTES, R5);
        self.whole();
        // No response can be sent to port 0.
        self.asm.load(Half, R3, R9, 0);
        self.asm.jump_if(Equal, R3, 0, self.pass);
        self.asm.load(Half, R3, R9, 2);
        self.asm.store(Half, R10, TARGET + 16, R3);
        self.asm.store(Half, R10, TARGET + 18, 0);
        self.look_up(self.maps.targets, TARGET);
        self.asm.jump_if(Equal, R0, 0, self.pass);
        self.asm.store(Word, R10, INDEX, 0);
        self.look_up(self.maps.current, INDEX);
        self.asm.jump_if(Equal, R0, 0, self.pass);
        self.asm.load(Word, R1, R0, 0);
        self.asm.store(Word, R10, INDEX, R1);
        self.look_up(self.maps.settings, INDEX);
        self.asm.jump_if(Equal, R0, 0, self.pass);
        self.asm.set(R6, R0);
        self.asm.store(Word, R10, PREFIX, 128);
        self.look_up(self.maps.denied, PREFIX);
        let is_welcome = self.asm.label();
        self.asm.jump_if(Equal, R0, 0, is_welcome);
        self.drop_as(OffloadVerdict::NetworkDenied);
        self.asm.place(is_welcome);
    }

    /// Passes a frame that ends before its datagram. Lengths are compared, and not places in the
    /// frame: to add a register to such a place takes `CAP_PERFMON`.
    fn whole(&mut self) {
        self.asm.load(Double, R1, R10, CONTEXT);
        self.asm.call(Helper::XdpGetBuffLen);
        self.asm.load(Double, R5, R10, IS_V4);
        self.asm.arithmetic(Operation::Multiply, R5, i32::from(IPV6_HEADER - IPV4_HEADER));
        self.asm.add(R0, R5);
        self.asm.load(Double, R5, R10, LINK_BYTES);
        self.asm.load(Double, R3, R10, UDP_BYTES);
        self.asm.add(R5, R3);
        self.asm.add(R5, i32::from(IPV6_HEADER));
        self.asm.jump_if(Above, R5, R0, self.pass);
    }

    /// What kind of datagram this is.
    fn datagram(&mut self) {
        let asm = &mut self.asm;
        let (other, connect, announce, scrape, id) =
            (asm.label(), asm.label(), asm.label(), asm.label(), asm.label());
        asm.load(Double, R5, R10, UDP_BYTES);
        asm.jump_if(Below, R5, UDP_HEADER + CONNECT_BYTES, other);
        asm.set(R2, R9);
        asm.add(R2, UDP_HEADER + CONNECT_BYTES);
        asm.jump_if(Above, R2, R8, other);
        asm.load(Word, R3, R9, 16);
        asm.jump_if(Equal, R3, 0, connect);
        asm.jump_if_word(Equal, R3, network32(1), announce);
        asm.jump_if_word(Equal, R3, network32(2), scrape);
        asm.jump(other);
        asm.place(announce);
        asm.jump_if(Below, R5, UDP_HEADER + ANNOUNCE_BYTES, other);
        asm.jump(id);
        asm.place(scrape);
        asm.jump_if(Below, R5, UDP_HEADER + SCRAPE_BYTES, other);
        asm.place(id);
        self.check_id();
        self.asm.place(connect);
        self.connect(other);
        self.asm.place(other);
        self.finish(OffloadVerdict::PassedOther, XdpVerdict::Pass);
    }

    /// The MAC of the source's network in the bucket of R5, under a key, in R0.
    fn mac(&mut self, key: Field, key_end: Field) {
        self.asm.load(Double, R1, R6, key.offset());
        self.asm.load(Double, R2, R6, key_end.offset());
        self.asm.load(Double, R3, R10, NETWORK);
        self.asm.load(Double, R4, R10, NETWORK + 8);
        self.asm.call_within(self.siphash);
    }

    /// The current bucket, in R0; the moment in [`NOW`].
    fn bucket(&mut self) {
        self.asm.call(Helper::KtimeGetNs);
        self.asm.load(Double, R1, R6, Field::ClockOffset.offset());
        self.asm.add(R0, R1);
        self.asm.store(Double, R10, NOW, R0);
        self.asm.set_double(R1, BUCKET_NS);
        self.asm.arithmetic(Operation::Divide, R0, R1);
    }

    fn check_id(&mut self) {
        let (genuine, expired, forged) = (self.asm.label(), self.asm.label(), self.asm.label());
        self.asm.load(Double, R3, R9, 8);
        self.asm.swap_to_network_order(R3, 64);
        self.asm.store(Double, R10, ID, R3);
        self.bucket();
        self.asm.add(R0, BUCKETS_AHEAD);
        self.asm.load(Double, R3, R10, ID);
        self.asm.set(R1, R0);
        self.asm.arithmetic(Operation::Subtract, R1, R3);
        self.asm.and(R1, (1 << BUCKET_BITS) - 1);
        self.asm.store(Double, R10, BACK, R1);
        self.asm.arithmetic(Operation::Subtract, R0, R1);
        self.asm.store(Double, R10, BUCKET, R0);
        self.go_if_issued(Field::Active, Field::ActiveEnd, genuine);
        self.asm.load(Double, R3, R6, Field::HasStaging.offset());
        self.asm.jump_if(Equal, R3, 0, forged);
        self.go_if_issued(Field::Staging, Field::StagingEnd, genuine);
        self.asm.place(forged);
        self.drop_as(OffloadVerdict::ForgedId);
        self.asm.place(genuine);
        self.asm.load(Double, R1, R10, BACK);
        self.asm.jump_if(Above, R1, BUCKETS_BACK + BUCKETS_AHEAD, expired);
        self.redirect();
        self.finish(OffloadVerdict::PassedGenuine, XdpVerdict::Pass);
        self.asm.place(expired);
        self.drop_as(OffloadVerdict::ExpiredId);
    }

    /// Goes to `genuine` if the id is the one that a key gives.
    fn go_if_issued(&mut self, key: Field, key_end: Field, genuine: Label) {
        self.asm.load(Double, R5, R10, BUCKET);
        self.mac(key, key_end);
        self.asm.load(Double, R1, R10, ID);
        self.asm.xor(R0, R1);
        self.asm.shift_right(R0, BUCKET_BITS);
        self.asm.jump_if(Equal, R0, 0, genuine);
    }

    /// Redirects a frame to the AF_XDP socket of its receive queue, if there is one and it takes
    /// frames of this length. Such a socket sends its response to the station of the request.
    fn redirect(&mut self) {
        let (stays, routed) = (self.asm.label(), self.asm.label());
        self.asm.set(R2, R7);
        self.asm.add(R2, RECEIVED_BYTES_MAX.cast_signed() + 1);
        self.asm.jump_if(AtMost, R2, R8, stays);
        self.asm.load(Double, R1, R10, CONTEXT);
        self.asm.load(Word, R3, R1, CONTEXT_QUEUE);
        self.asm.store(Word, R10, INDEX, R3);
        self.look_up(self.maps.sockets, INDEX);
        self.asm.jump_if(Equal, R0, 0, stays);
        self.find_route();
        self.asm.load(Double, R3, R6, Field::AsksRoutes.offset());
        self.asm.jump_if(Equal, R3, 0, routed);
        self.set_stations(6, 0);
        self.asm.place(routed);
        self.asm.set_map(R1, self.maps.sockets);
        self.asm.load(Word, R2, R10, INDEX);
        self.asm.set(R3, XdpVerdict::Pass as i32);
        self.asm.call(Helper::RedirectMap);
        self.asm.jump_if(NotEqual, R0, XdpVerdict::Redirect as i32, stays);
        self.finish(OffloadVerdict::Redirected, XdpVerdict::Redirect);
        self.asm.place(stays);
    }

    /// A datagram with the action of a connect: answers it if it is a plain one.
    fn connect(&mut self, other: Label) {
        self.asm.jump_if(NotEqual, R5, UDP_HEADER + CONNECT_BYTES, other);
        self.asm.load(Double, R3, R9, 8);
        self.asm.set_double(R1, MAGIC.to_be());
        self.asm.jump_if(NotEqual, R3, R1, other);
        self.verify_checksum(other);
        self.find_route();
        self.bucket();
        self.asm.store(Double, R10, BUCKET, R0);
        self.limit();
        self.asm.load(Double, R5, R10, BUCKET);
        self.mac(Field::Active, Field::ActiveEnd);
        self.asm.shift_right(R0, BUCKET_BITS);
        self.asm.shift_left(R0, BUCKET_BITS);
        self.asm.load(Double, R1, R10, BUCKET);
        self.asm.and(R1, (1 << BUCKET_BITS) - 1);
        self.asm.or(R0, R1);
        self.asm.swap_to_network_order(R0, 64);
        // Action, transaction id, connection id.
        self.asm.load(Word, R3, R9, 20);
        self.asm.store(Word, R9, 8, 0);
        self.asm.store(Word, R9, 12, R3);
        self.asm.store(Double, R9, 16, R0);
        self.turn_around();
        self.asm.load(Double, R1, R10, VERDICT);
        self.asm.store(Word, R10, INDEX, R1);
        self.asm.set(R6, XdpVerdict::Transmit as i32);
        self.asm.jump(self.end);
    }

    /// The sum of the words at these offsets, in R1.
    fn sum(&mut self, base: Register, offsets: impl IntoIterator<Item = i16>) {
        self.asm.set(R1, 0);
        checksum::add_words(&mut self.asm, base, offsets);
    }

    /// The sum of a datagram of a connect's length with its pseudo-header, in R1. What makes an
    /// IPv4 address a mapped one adds 0xffff, which is zero here.
    fn sum_datagram(&mut self) {
        self.sum(R9, (0..24).step_by(4));
        checksum::add_words(&mut self.asm, R10, (SOURCE..SOURCE + 16).step_by(4));
        checksum::add_words(&mut self.asm, R10, (TARGET..TARGET + 16).step_by(4));
        self.asm.load(Half, R2, R9, 4);
        self.asm.add(R1, R2);
        self.asm.add(R1, network16(17));
        checksum::fold(&mut self.asm);
    }

    /// Goes to `other` unless the checksum is right: the kernel knows better, if the sender is a
    /// process of this host that leaves it to a network card. IPv4 may have none.
    fn verify_checksum(&mut self, other: Label) {
        let (verify, verified) = (self.asm.label(), self.asm.label());
        self.asm.load(Half, R3, R9, 6);
        self.asm.jump_if(NotEqual, R3, 0, verify);
        self.asm.load(Double, R3, R10, IS_V4);
        self.asm.jump_if(Equal, R3, 0, other);
        self.asm.jump(verified);
        self.asm.place(verify);
        self.sum_datagram();
        self.asm.jump_if(NotEqual, R1, 0xffff, other);
        self.asm.place(verified);
    }

    /// Passes what the kernel would not send out of the interface through which the request came,
    /// if routes are to be asked.
    fn find_route(&mut self) {
        let asm = &mut self.asm;
        let (found, v6, asked, none) = (asm.label(), asm.label(), asm.label(), asm.label());
        // The stations are written in any case: the verifier does not know that nothing reads them
        // if no route is asked for, and what was never written may be read with `CAP_PERFMON` only.
        for at in (ROUTE_BYTES_ASKED..ROUTE_BYTES).step_by(8) {
            asm.store(Double, R10, ROUTE + at, 0);
        }
        asm.load(Double, R3, R6, Field::AsksRoutes.offset());
        asm.jump_if(Equal, R3, 0, found);
        for at in (0..ROUTE_BYTES_ASKED).step_by(8) {
            asm.store(Double, R10, ROUTE + at, 0);
        }
        asm.store(Byte, R10, ROUTE + ROUTE_PROTOCOL, UDP);
        asm.load(Double, R3, R10, IS_V4);
        asm.jump_if(Equal, R3, 0, v6);
        asm.store(Byte, R10, ROUTE, libc::AF_INET);
        for (to, from) in [(ROUTE_FROM, TARGET + 12), (ROUTE_TO, SOURCE + 12)] {
            asm.load(Word, R3, R10, from);
            asm.store(Word, R10, ROUTE + to, R3);
        }
        asm.jump(asked);
        asm.place(v6);
        asm.store(Byte, R10, ROUTE, libc::AF_INET6);
        for (to, from) in [(ROUTE_FROM, TARGET), (ROUTE_TO, SOURCE)] {
            for word in (0..16).step_by(4) {
                asm.load(Word, R3, R10, from + word);
                asm.store(Word, R10, ROUTE + to + word, R3);
            }
        }
        asm.place(asked);
        asm.load(Double, R1, R10, CONTEXT);
        asm.load(Word, R3, R1, CONTEXT_INTERFACE);
        asm.store(Word, R10, ROUTE + ROUTE_INTERFACE, R3);
        asm.set(R2, R10);
        asm.add(R2, i32::from(ROUTE));
        asm.set(R3, i32::from(ROUTE_BYTES));
        asm.set(R4, 0);
        asm.call(Helper::FibLookup);
        asm.jump_if(NotEqual, R0, 0, none);
        asm.load(Double, R1, R10, CONTEXT);
        asm.load(Word, R1, R1, CONTEXT_INTERFACE);
        asm.load(Word, R3, R10, ROUTE + ROUTE_INTERFACE);
        asm.jump_if(Equal, R1, R3, found);
        asm.place(none);
        self.finish(OffloadVerdict::PassedNoRoute, XdpVerdict::Pass);
        self.asm.place(found);
    }

    /// The stations of the response: those of the request, exchanged, or those of the route.
    fn turn_stations_around(&mut self) {
        let (exchanged, done) = (self.asm.label(), self.asm.label());
        self.asm.load(Double, R3, R6, Field::AsksRoutes.offset());
        self.asm.jump_if(Equal, R3, 0, exchanged);
        self.set_stations(0, 6);
        self.asm.jump(done);
        self.asm.place(exchanged);
        self.exchange(Word, R7, 0, 6);
        self.exchange(Half, R7, 4, 10);
        self.asm.place(done);
    }

    /// Writes the stations of the route: where the next one stands in the frame, and where ours.
    fn set_stations(&mut self, next: i16, ours: i16) {
        for (to, from) in [(next, ROUTE_NEXT_MAC), (ours, ROUTE_OUR_MAC)] {
            for half in (0..6).step_by(2) {
                self.asm.load(Half, R3, R10, ROUTE + from + half);
                self.asm.store(Half, R7, to + half, R3);
            }
        }
    }

    /// The frame, with source and destination exchanged and its checksums computed.
    fn turn_around(&mut self) {
        let (v6, udp) = (self.asm.label(), self.asm.label());
        self.turn_stations_around();
        self.exchange(Half, R9, 0, 2);
        self.asm.load(Double, R3, R10, IS_V4);
        self.asm.jump_if(Equal, R3, 0, v6);
        let ip = -IPV4_HEADER;
        self.exchange(Word, R9, ip + 12, ip + 16);
        self.asm.store(Byte, R9, ip + 1, 0);
        self.asm.store(Byte, R9, ip + 8, HOPS);
        self.asm.store(Half, R9, ip + 10, 0);
        self.sum(R9, (ip..0).step_by(4));
        checksum::fold(&mut self.asm);
        self.asm.xor(R1, 0xffff);
        self.asm.store(Half, R9, ip + 10, R1);
        self.asm.jump(udp);
        self.asm.place(v6);
        let ip = -IPV6_HEADER;
        for word in (0..16).step_by(4) {
            self.exchange(Word, R9, ip + 8 + word, ip + 24 + word);
        }
        self.asm.store(Word, R9, ip, network32(0x6000_0000));
        self.asm.store(Byte, R9, ip + 7, HOPS);
        self.asm.place(udp);
        self.asm.store(Half, R9, 6, 0);
        self.sum_datagram();
        self.asm.xor(R1, 0xffff);
        let is_set = self.asm.label();
        self.asm.jump_if(NotEqual, R1, 0, is_set);
        self.asm.set(R1, 0xffff);
        self.asm.place(is_set);
        self.asm.store(Half, R9, 6, R1);
    }

    fn exchange(&mut self, width: Width, base: Register, one: i16, other: i16) {
        self.asm.load(width, R3, base, one);
        self.asm.load(width, R4, base, other);
        self.asm.store(width, base, one, R4);
        self.asm.store(width, base, other, R3);
    }

    /// Leaves the verdict of an answer, or drops the connect.
    fn limit(&mut self) {
        let asm = &mut self.asm;
        let (v6, over, within, answer) = (asm.label(), asm.label(), asm.label(), asm.label());
        asm.load(Double, R3, R6, Field::Interval.offset());
        asm.jump_if(Equal, R3, 0, within);
        self.look_up(self.maps.exempt, PREFIX);
        self.asm.jump_if(NotEqual, R0, 0, within);
        self.asm.load(Double, R3, R10, IS_V4);
        self.asm.jump_if(Equal, R3, 0, v6);
        self.charge(&V4, 0, over);
        self.asm.jump(within);
        self.asm.place(v6);
        self.charge(&V6, V4.len(), over);
        self.asm.jump(within);
        self.asm.place(over);
        self.slip(answer);
        self.asm.place(within);
        self.asm.store(Double, R10, VERDICT, OffloadVerdict::Answered as i32);
        self.asm.place(answer);
    }

    /// Turns R1 into a hash of so many bits, under the secret seed; `salt` separates kinds of keys.
    fn hash(&mut self, salt: usize, bits: i32) {
        for (seed, factor) in [(Field::Seed, FACTORS[0]), (Field::SeedEnd, FACTORS[1])] {
            self.asm.load(Double, R2, R6, seed.offset());
            self.asm.xor(R1, R2);
            self.asm.add(R1, i32::try_from(salt).unwrap_or(0));
            self.asm.set_double(R2, factor);
            self.asm.arithmetic(Operation::Multiply, R1, R2);
            self.asm.set(R2, R1);
            self.asm.shift_right(R2, 32);
            self.asm.xor(R1, R2);
        }
        self.asm.and(R1, (1 << bits) - 1);
        self.asm.store(Word, R10, INDEX, R1);
    }

    /// Mixes the lower half of an IPv6 address into R1.
    fn mix_low(&mut self) {
        self.asm.set_double(R2, FACTORS[0]);
        self.asm.arithmetic(Operation::Multiply, R1, R2);
        for offset in [8, 12] {
            self.asm.load(Word, R2, R10, SOURCE + offset);
            self.asm.arithmetic(Operation::Multiply, R1, 0x0100_0193);
            self.asm.xor(R1, R2);
        }
    }

    /// Charges every prefix of the source, or goes to `over` and charges none: a load is the moment
    /// at which it is empty (GCRA).
    fn charge(&mut self, prefixes: &[Prefix], first: usize, over: Label) {
        let places = (PLACES..).step_by(8);
        for ((at, prefix), place) in prefixes.iter().enumerate().zip(places.clone()) {
            self.asm.load(Double, R1, R10, HIGH);
            self.asm.shift_right(R1, prefix.shift);
            if first > 0 && at == 0 {
                self.mix_low();
            }
            self.hash(first + at, LOAD_BITS);
            self.look_up(self.maps.loads, INDEX);
            self.asm.jump_if(Equal, R0, 0, self.pass);
            self.asm.store(Double, R10, place, R0);
            self.load_of_place();
            self.asm.load(Double, R2, R10, NOW);
            self.asm.arithmetic(Operation::Subtract, R1, R2);
            self.asm.load(Double, R3, R6, Field::Burst.offset());
            self.asm.jump_if(AtLeast, R1, R3, over);
        }
        for (prefix, place) in prefixes.iter().zip(places) {
            self.asm.load(Double, R0, R10, place);
            self.load_of_place();
            self.asm.load(Double, R3, R6, Field::Interval.offset());
            self.asm.arithmetic(Operation::Divide, R3, prefix.times);
            self.asm.add(R1, R3);
            self.asm.store(Double, R0, 0, R1);
        }
    }

    /// The load at R0, in R1: not before now.
    fn load_of_place(&mut self) {
        let is_later = self.asm.label();
        self.asm.load(Double, R1, R0, 0);
        self.asm.load(Double, R2, R10, NOW);
        self.asm.jump_if(AtLeast, R1, R2, is_later);
        self.asm.set(R1, R2);
        self.asm.place(is_later);
    }

    /// Over the limit: one in [`SLIP_EACH`] of each address and port is answered nevertheless.
    fn slip(&mut self, answer: Label) {
        let dropped = self.asm.label();
        self.asm.load(Double, R1, R10, HIGH);
        self.mix_low();
        self.asm.load(Half, R2, R9, 0);
        self.asm.add(R1, R2);
        self.hash(V4.len() + V6.len(), SLIP_BITS);
        self.look_up(self.maps.slips, INDEX);
        self.asm.jump_if(Equal, R0, 0, dropped);
        self.asm.load(Double, R1, R0, 0);
        self.asm.add(R1, 1);
        self.asm.store(Double, R0, 0, R1);
        self.asm.jump_if(AnyBitSet, R1, SLIP_EACH - 1, dropped);
        self.asm.store(Double, R10, VERDICT, OffloadVerdict::AnsweredOverLimit as i32);
        self.asm.jump(answer);
        self.asm.place(dropped);
        self.drop_as(OffloadVerdict::LimitedConnect);
    }

    fn drop_as(&mut self, verdict: OffloadVerdict) {
        self.finish(verdict, XdpVerdict::Drop);
    }

    /// Counts a verdict and ends with what the kernel is to do.
    fn finish(&mut self, verdict: OffloadVerdict, action: XdpVerdict) {
        self.asm.store(Word, R10, INDEX, verdict as i32);
        self.asm.set(R6, action as i32);
        self.asm.jump(self.end);
    }

    /// The end of every way that is counted: by verdict and family, datagrams and their bytes.
    fn count(&mut self) {
        let counted = self.asm.label();
        self.asm.place(self.end);
        self.asm.load(Word, R1, R10, INDEX);
        self.asm.shift_left(R1, 1);
        self.asm.load(Double, R2, R10, IS_V4);
        self.asm.or(R1, R2);
        self.asm.store(Word, R10, INDEX, R1);
        self.look_up(self.maps.counters, INDEX);
        self.asm.jump_if(Equal, R0, 0, counted);
        self.asm.load(Double, R1, R0, 0);
        self.asm.add(R1, 1);
        self.asm.store(Double, R0, 0, R1);
        self.asm.load(Double, R1, R0, 8);
        self.asm.load(Double, R2, R10, UDP_BYTES);
        self.asm.add(R1, R2);
        self.asm.add(R1, -UDP_HEADER);
        self.asm.store(Double, R0, 8, R1);
        self.asm.place(counted);
        self.asm.set(R0, R6);
        self.asm.exit();
    }
}
