//! Frames: what nodes send each other. Every frame is authenticated, because the broker may be
//! shared, and a forged delta would point a swarm at a victim.
//!
//! ```text
//! frame  "skpc" (4) | version (1) | kind (1) | flags (2) | records (4) | node (8) | epoch (8)
//!        | sequence (8) | sent (8) | payload … | MAC (16)
//! ```
//!
//! All numbers are little-endian. `node` is a hash of the name of the node that sends, `epoch` the
//! moment of its start in nanoseconds, `sent` its wall clock in milliseconds since the Unix epoch.
//! The MAC is HMAC-SHA-256 over everything before it, cut to 16 bytes (RFC 2104, section 5), with a
//! key that depends on the secret and on the name of the cluster.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version that is sent, and the only one so far. A version to come is accepted beside the one
/// before it, so that nodes can be upgraded one after the other.
pub(super) const VERSION: u8 = 1;

const MAGIC: [u8; 4] = *b"skpc";

/// Bytes of the MAC.
pub(super) const MAC_BYTES: usize = 16;

/// Bytes of a frame's head.
pub(super) const HEAD_BYTES: usize = size_of::<RawHead>();

const _: () = assert!(HEAD_BYTES == 44);

/// The longest payload, in bytes: a block of a join with its nonce. Far below the broker's usual
/// limit of 1 MiB for a message.
pub(super) const PAYLOAD_BYTES_MAX: usize = (64 << 10) + 64;

/// The longest difference between a frame's wall clock and the receiver's, in milliseconds: a frame
/// that was recorded earlier cannot be used again.
pub(super) const AGE_MS_MAX: u64 = 120_000;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Changes to peers, in the order in which they were made.
    Deltas = 1,
    /// A node's state, every five seconds.
    Hello = 2,
    /// A message to all nodes or to one: the module `message`.
    Message = 3,
    /// A block of swarms for a node that joins.
    Block = 4,
}

impl FrameKind {
    fn of(kind: u8) -> Option<Self> {
        match kind {
            1 => Some(Self::Deltas),
            2 => Some(Self::Hello),
            3 => Some(Self::Message),
            4 => Some(Self::Block),
            _ => None,
        }
    }
}

/// The secret that all nodes of a cluster share.
#[derive(Clone)]
pub struct ClusterSecret(Vec<u8>);

impl ClusterSecret {
    /// The least bytes of a secret.
    pub const BYTES_MIN: usize = 32;

    /// A secret; `None` if it is shorter than [`Self::BYTES_MIN`].
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= Self::BYTES_MIN).then(|| Self(bytes.to_vec()))
    }

    /// A key for another purpose, which `label` names.
    pub fn derived(&self, label: &[u8]) -> [u8; 32] {
        let mut mac = keyed(&self.0);
        mac.update(label);
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(hidden)")
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    // HMAC takes keys of every length, so this cannot fail.
    <Hmac<Sha256> as KeyInit>::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&[0; 64].into()))
}

/// Seals and opens the frames of one cluster.
#[derive(Clone)]
pub struct FrameKey(Hmac<Sha256>);

impl FrameKey {
    /// The key of the cluster with this name.
    pub fn new(secret: &ClusterSecret, cluster: &str) -> Self {
        let label = [b"skep cluster frame 1\0", cluster.as_bytes()].concat();
        Self(keyed(&secret.derived(&label)))
    }

    /// The bytes of a frame.
    pub fn seal(&self, head: &FrameHead, payload: &[u8]) -> Vec<u8> {
        let raw = RawHead {
            magic: MAGIC,
            version: VERSION,
            kind: head.kind as u8,
            flags: head.flags.into(),
            records: head.records.into(),
            node: head.node.into(),
            epoch: head.epoch.into(),
            sequence: head.sequence.into(),
            sent_ms: head.sent_ms.into(),
        };
        let mut frame = Vec::with_capacity(HEAD_BYTES + payload.len() + MAC_BYTES);
        frame.extend_from_slice(raw.as_bytes());
        frame.extend_from_slice(payload);
        let mac = self.mac(&frame);
        frame.extend_from_slice(&mac);
        frame
    }

    /// A frame's head and payload. `wall_ms` is the wall clock: milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// Why it is not used. Nothing of a frame is looked at before its MAC is verified, but its
    /// version.
    pub fn open<'a>(
        &self,
        frame: &'a [u8],
        wall_ms: u64,
    ) -> Result<(FrameHead, &'a [u8]), FrameError> {
        let (body, mac) = frame.split_last_chunk::<MAC_BYTES>().ok_or(FrameError::Forged)?;
        let (raw, payload) = RawHead::ref_from_prefix(body).map_err(|_| FrameError::Forged)?;
        if raw.magic != MAGIC || payload.len() > PAYLOAD_BYTES_MAX {
            return Err(FrameError::Forged);
        }
        // A node that is newer may authenticate in another way.
        if raw.version != VERSION {
            return Err(FrameError::Version);
        }
        if !bool::from(self.mac(body).ct_eq(mac)) {
            return Err(FrameError::Forged);
        }
        if raw.sent_ms.get().abs_diff(wall_ms) > AGE_MS_MAX {
            return Err(FrameError::Stale);
        }
        let kind = FrameKind::of(raw.kind).ok_or(FrameError::Version)?;
        let head = FrameHead {
            kind,
            flags: raw.flags.get(),
            records: raw.records.get(),
            node: raw.node.get(),
            epoch: raw.epoch.get(),
            sequence: raw.sequence.get(),
            sent_ms: raw.sent_ms.get(),
        };
        Ok((head, payload))
    }

    fn mac(&self, body: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = self.0.clone();
        mac.update(body);
        let whole: [u8; 32] = mac.finalize().into_bytes().into();
        let mut cut = [0; MAC_BYTES];
        cut.copy_from_slice(&whole[..MAC_BYTES]);
        cut
    }
}

/// The number that stands for a node's name in frames.
pub fn node_hash(name: &str) -> u64 {
    use sha2::Digest as _;
    let digest: [u8; 32] = Sha256::digest(name.as_bytes()).into();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first)
}

/// Why a frame is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It is not a frame of this cluster.
    #[error("the frame has no valid MAC of this cluster")]
    Forged,
    /// It is of a version or a kind that this program does not know.
    #[error("the frame has an unknown version or kind")]
    Version,
    /// Its clock differs by more than two minutes.
    #[error("the frame was sent more than {} s before or after now", AGE_MS_MAX / 1000)]
    Stale,
}

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// What it is for.
    pub kind: FrameKind,
    /// Bit 0, of a block: this is the last one.
    pub flags: u16,
    /// The number of records of deltas, or of torrents of a block.
    pub records: u32,
    /// The [`node_hash`] of the node that sends.
    pub node: u64,
    /// When that node was started: nanoseconds of its wall clock since the Unix epoch.
    pub epoch: u64,
    /// The number of the frame among those of its kind, from 1; of a block its index, from 0.
    pub sequence: u64,
    /// The sending node's wall clock: milliseconds since the Unix epoch.
    pub sent_ms: u64,
}

/// The bit of [`FrameHead::flags`] in a join's last block.
pub(super) const FLAG_LAST: u16 = 1;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHead {
    magic: [u8; 4],
    version: u8,
    kind: u8,
    flags: U16,
    records: U32,
    node: U64,
    epoch: U64,
    sequence: U64,
    sent_ms: U64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL_MS: u64 = 1_800_000_000_000;

    fn key(secret: u8, cluster: &str) -> FrameKey {
        FrameKey::new(&ClusterSecret::new(&[secret; 32]).unwrap(), cluster)
    }

    fn head() -> FrameHead {
        FrameHead {
            kind: FrameKind::Deltas,
            flags: 0,
            records: 2,
            node: 3,
            epoch: 4,
            sequence: 5,
            sent_ms: WALL_MS,
        }
    }

    #[test]
    fn a_frame_that_was_sealed_is_opened() {
        let key = key(1, "skep");
        let sealed = key.seal(&head(), b"payload");
        assert_eq!(key.open(&sealed, WALL_MS + AGE_MS_MAX), Ok((head(), &b"payload"[..])));
        assert_eq!(key.open(&key.seal(&head(), b""), WALL_MS), Ok((head(), &b""[..])));
    }

    #[test]
    fn no_changed_byte_no_part_and_no_other_clusters_frame_is_opened() {
        let own = key(1, "skep");
        let sealed = own.seal(&head(), b"payload");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            let expected = if at == 4 { FrameError::Version } else { FrameError::Forged };
            assert_eq!(own.open(&changed, WALL_MS), Err(expected), "byte {at}");
            assert_eq!(own.open(&sealed[..at], WALL_MS), Err(FrameError::Forged), "{at} bytes");
        }
        for other in [key(2, "skep"), key(1, "skep2")] {
            assert_eq!(other.open(&sealed, WALL_MS), Err(FrameError::Forged));
        }
    }

    #[test]
    fn frames_of_another_time_are_stale() {
        let key = key(1, "skep");
        let sealed = key.seal(&head(), b"");
        for wall_ms in [WALL_MS - AGE_MS_MAX - 1, WALL_MS + AGE_MS_MAX + 1, 0, u64::MAX] {
            assert_eq!(key.open(&sealed, wall_ms), Err(FrameError::Stale));
        }
    }

    #[test]
    fn a_payload_that_is_too_long_is_refused_although_its_mac_is_right() {
        let key = key(1, "skep");
        let longest = vec![0; PAYLOAD_BYTES_MAX];
        assert!(key.open(&key.seal(&head(), &longest), WALL_MS).is_ok());
        let longer = vec![0; PAYLOAD_BYTES_MAX + 1];
        assert_eq!(key.open(&key.seal(&head(), &longer), WALL_MS), Err(FrameError::Forged));
    }

    #[test]
    fn a_short_secret_is_refused_and_a_secret_is_never_shown() {
        assert!(ClusterSecret::new(&[7; 31]).is_none());
        let secret = ClusterSecret::new(&[b'S'; 32]).unwrap();
        assert_eq!(format!("{secret:?}"), "ClusterSecret(hidden)");
        assert_ne!(secret.derived(b"a"), secret.derived(b"b"));
    }
}
