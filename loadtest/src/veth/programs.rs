//! The two XDP programs of the generator's side, with their maps: one makes frames, the other
//! counts and checks responses.

use std::io;
use std::net::SocketAddrV4;

use skep::sys::xdp::assembler::{Assembler, Helper, Instruction, Register};
use skep::sys::xdp::kernel::{LoadError, Map, MapKind, MapShape, XdpProgram};

use super::{generator, sink};
use crate::population::info_hash;

/// Frames that leave together: the generator decides once for each batch.
pub(crate) const BATCH: u32 = 32;

/// The generator's settings, its state, and what it has sent. All are 8 bytes in the host's order.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Control {
    /// Which requests: a [`Mix`].
    Mix,
    /// Nanoseconds between batches; 0: as fast as responses arrive.
    IntervalNs,
    /// Most requests without a response, if there is no interval.
    InFlight,
    /// After so many nanoseconds without a batch, what is in flight is given up.
    StallNs,
    /// In a flood: one request of so many is honest.
    HonestEvery,
    /// Runs of the program.
    Runs,
    /// Whether this batch leaves.
    IsActive,
    /// When the next batch is due.
    DueNs,
    /// When the last batch left, if there is no interval.
    LastNs,
    /// Requests that are no longer expected to have a response.
    GivenUp,
    /// Honest requests, by which client and torrent are chosen.
    Turn,
    /// Forged requests before the next honest one.
    UntilHonest,
    /// Connects sent.
    Connects,
    /// Honest announces sent.
    Announces,
    /// Announces with a random id sent.
    Forged,
}

impl Control {
    const COUNT: usize = Self::Forged as usize + 1;

    /// Where it is.
    pub(crate) const fn offset(self) -> i16 {
        self as i16 * 8
    }
}

/// Kinds of requests, and how they follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mix {
    /// A connect of each client in turn.
    Connects,
    /// Announces, with the id that the client was last given.
    Announces,
    /// A connect and an announce of each client in turn.
    Pairs,
    /// The same among announces with random ids from random addresses.
    Flood,
}

/// What the sink has counted, as [`Control`]. Each class is a count of responses and one of their
/// bytes.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Reply {
    /// Responses to clients, of all classes.
    All,
    /// Responses to connects.
    Connects,
    /// Bytes of their datagrams.
    ConnectBytes,
    /// Responses to announces.
    Announces,
    /// Bytes of their datagrams.
    AnnounceBytes,
    /// Errors.
    Errors,
    /// Bytes of their datagrams.
    ErrorBytes,
    /// With a length, action, transaction id or address that cannot be.
    Invalid,
    /// Bytes of their datagrams.
    InvalidBytes,
    /// To forged sources.
    Forged,
    /// Bytes of their datagrams.
    ForgedBytes,
    /// Clients that have been given an id.
    Known,
    /// All, by which one of many is passed on.
    Seen,
}

impl Reply {
    const COUNT: usize = Self::Seen as usize + 1;

    /// Where it is.
    pub(crate) const fn offset(self) -> i16 {
        self as i16 * 8
    }
}

/// What the programs are made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// The tracker.
    pub(crate) server: SocketAddrV4,
    /// The interface by which frames leave.
    pub(crate) interface: u32,
    /// Clients: 2 to this power.
    pub(crate) client_bits: u32,
    /// Torrents: 2 to this power.
    pub(crate) torrent_bits: u32,
    /// Peers wanted.
    pub(crate) numwant: u16,
    /// Seed of the info-hashes.
    pub(crate) seed: u64,
    /// Of the responses, one of so many is passed on to the namespace's sockets: a power of 2.
    pub(crate) sample_every: u32,
}

/// Descriptors of the maps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProgramMaps {
    pub(crate) control: i32,
    pub(crate) replies: i32,
    pub(crate) ids: i32,
    pub(crate) hashes: i32,
}

/// Both programs.
#[derive(Debug)]
pub(crate) struct Programs {
    /// Makes frames.
    pub(crate) generator: XdpProgram,
    /// Takes responses.
    pub(crate) sink: XdpProgram,
    control: Map,
    replies: Map,
    ids: Map,
}

/// Bytes of an entry of the ids: the id as it is sent, and whether there is one.
const ID_BYTES: u32 = 16;
/// Bytes of an entry of the info-hashes.
const HASH_BYTES: u32 = 24;

impl Programs {
    /// Makes the maps, and has the kernel verify the programs.
    ///
    /// # Errors
    /// [`LoadError`], e.g. without `CAP_BPF` and `CAP_NET_ADMIN`.
    pub(crate) fn load(shape: &Shape) -> Result<Self, LoadError> {
        let array = |value_bytes, entries_max| {
            Map::create(MapShape { kind: MapKind::Array, key_bytes: 4, value_bytes, entries_max })
        };
        let control = array(bytes(Control::COUNT), 1)?;
        let replies = array(bytes(Reply::COUNT), 1)?;
        let ids = array(ID_BYTES, 1 << shape.client_bits)?;
        let hashes = array(HASH_BYTES, 1 << shape.torrent_bits)?;
        for torrent in 0..1_u32 << shape.torrent_bits {
            let mut value = [0; HASH_BYTES as usize];
            value[..20].copy_from_slice(&info_hash(shape.seed, torrent).0);
            hashes.set(&torrent.to_ne_bytes(), &value)?;
        }
        let maps = ProgramMaps {
            control: control.descriptor(),
            replies: replies.descriptor(),
            ids: ids.descriptor(),
            hashes: hashes.descriptor(),
        };
        let generator = XdpProgram::load(&generator::assemble(shape, maps))?;
        let sink = XdpProgram::load(&sink::assemble(shape, maps))?;
        Ok(Self { generator, sink, control, replies, ids })
    }

    /// Begins a phase with counters at zero. Nothing may be under way.
    ///
    /// # Errors
    /// Errors of the system call.
    pub(crate) fn begin(&self, settings: &[(Control, u64)]) -> io::Result<()> {
        let mut words = [0; Control::COUNT];
        settings.iter().for_each(|(which, value)| words[*which as usize] = *value);
        let known = self.replies()?.of(Reply::Known);
        let mut replies = [0; Reply::COUNT];
        replies[Reply::Known as usize] = known;
        self.replies.set(&ZERO, &to_bytes(&replies))?;
        self.control.set(&ZERO, &to_bytes(&words))
    }

    /// What was sent since the phase began.
    ///
    /// # Errors
    /// Errors of the system call.
    pub(crate) fn sent(&self) -> io::Result<Sent> {
        let words = words::<{ Control::COUNT }>(&self.control.get(&ZERO)?);
        let of = |which: Control| words[which as usize];
        Ok(Sent {
            connects: of(Control::Connects),
            announces: of(Control::Announces),
            forged: of(Control::Forged),
        })
    }

    /// What was answered since the phase began.
    ///
    /// # Errors
    /// Errors of the system call.
    pub(crate) fn replies(&self) -> io::Result<Replies> {
        Ok(Replies(words(&self.replies.get(&ZERO)?)))
    }

    /// The connection id of a client, as it was received.
    ///
    /// # Errors
    /// Errors of the system call.
    #[cfg(test)]
    pub(crate) fn id(&self, client: u32) -> io::Result<Option<[u8; 8]>> {
        let value = self.ids.get(&client.to_ne_bytes())?;
        let is_known = value[8..] != [0; 8];
        Ok(value.first_chunk().copied().filter(|_| is_known))
    }

    /// Forgets all connection ids.
    ///
    /// # Errors
    /// Errors of the system call.
    pub(crate) fn forget_ids(&self, client_bits: u32) -> io::Result<()> {
        let forget = |client: u32| self.ids.set(&client.to_ne_bytes(), &[0; ID_BYTES as usize]);
        (0..1 << client_bits).try_for_each(forget)?;
        self.replies.set(&ZERO, &to_bytes(&[0; Reply::COUNT]))
    }
}

/// Requests that were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Connects of clients.
    pub(crate) connects: u64,
    /// Announces of clients.
    pub(crate) announces: u64,
    /// Announces with random ids.
    pub(crate) forged: u64,
}

/// Counters of the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replies([u64; Reply::COUNT]);

impl Replies {
    /// One of them.
    pub(crate) fn of(&self, which: Reply) -> u64 {
        self.0[which as usize]
    }
}

/// The only key of a map with one entry.
const ZERO: [u8; 4] = [0; 4];

fn bytes(words: usize) -> u32 {
    u32::try_from(words * 8).unwrap_or(u32::MAX)
}

fn to_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = bytes.chunks_exact(8).filter_map(|it| it.try_into().ok());
    std::array::from_fn(|_| words.next().map_or(0, u64::from_ne_bytes))
}

// What both programs have in common.

/// The key of an array, on the stack.
pub(crate) const INDEX: i16 = -8;

/// Looks up the entry whose number is in [`INDEX`], in R0.
pub(crate) fn look_up(asm: &mut Assembler, map: i32) {
    asm.set_map(Register::R1, map);
    asm.set(Register::R2, Register::R10);
    asm.add(Register::R2, i32::from(INDEX));
    asm.call(Helper::MapLookupElem);
}

/// A number of 16 bits in the network's order, as a load of 2 bytes reads it.
pub(crate) const fn network16(value: u16) -> i32 {
    value.to_be() as i32
}

/// A number of 32 bits in the network's order, as a load of 4 bytes reads it.
pub(crate) const fn network32(value: u32) -> i32 {
    value.to_be().cast_signed()
}

/// A program's instructions.
pub(crate) type Code = Vec<Instruction>;
