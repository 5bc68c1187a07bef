//! The record of a registered torrent.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::access::lists::{ListKind, ListValue, parse_value};
use crate::types::InfoHash;

/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 1024;

/// The longest other text, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// A registered torrent. Only its hashes matter to the tracker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisteredTorrent {
    /// The hash of its swarm: 40 digits, or the 64 of a v2 torrent, which are truncated.
    #[serde(serialize_with = "write_hash", deserialize_with = "read_hash")]
    pub info_hash: InfoHash,
    /// The truncated v2 hash of a hybrid torrent (BEP 52): it leads to the same swarm.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "write_second",
        deserialize_with = "read_second"
    )]
    pub info_hash_v2: Option<InfoHash>,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// Bytes of all its files.
    #[serde(default)]
    pub size: Option<u64>,
    /// Bytes of a piece.
    #[serde(default)]
    pub piece_length: Option<u64>,
    /// The maker's comment.
    #[serde(default)]
    pub comment: Option<String>,
    /// The program that made it.
    #[serde(default)]
    pub created_by: Option<String>,
    /// When it was made, in seconds since the Unix epoch.
    #[serde(default)]
    pub created_s: Option<u64>,
    /// When it was first registered, in seconds since the Unix epoch. Not part of a request.
    #[serde(default)]
    pub registered_s: u64,
}

impl Default for RegisteredTorrent {
    fn default() -> Self {
        Self {
            info_hash: InfoHash([0; 20]),
            info_hash_v2: None,
            name: None,
            size: None,
            piece_length: None,
            comment: None,
            created_by: None,
            created_s: None,
            registered_s: 0,
        }
    }
}

impl RegisteredTorrent {
    /// Its hashes: one, or two for a hybrid.
    pub fn hashes(&self) -> impl Iterator<Item = InfoHash> {
        let second = self.info_hash_v2.filter(|it| *it != self.info_hash);
        [Some(self.info_hash), second].into_iter().flatten()
    }

    /// The field that is too long, if any, and its limit.
    pub fn fault(&self) -> Option<(&'static str, &'static str)> {
        let long = |it: &Option<String>, max| it.as_ref().is_some_and(|it| it.len() > max);
        if long(&self.name, NAME_BYTES_MAX) {
            return Some(("name", "must be at most 1024 bytes"));
        }
        let texts = [("comment", &self.comment), ("created_by", &self.created_by)];
        let found = texts.into_iter().find(|(_, it)| long(it, TEXT_BYTES_MAX));
        found.map(|(name, _)| (name, "must be at most 4096 bytes"))
    }
}

fn write_hash<S: Serializer>(info_hash: &InfoHash, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(info_hash)
}

fn write_second<S: Serializer>(
    info_hash: &Option<InfoHash>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match info_hash {
        Some(hash) => serializer.collect_str(hash),
        None => serializer.serialize_none(),
    }
}

fn read_hash<'de, D: Deserializer<'de>>(deserializer: D) -> Result<InfoHash, D::Error> {
    hash(&String::deserialize(deserializer)?)
}

fn read_second<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<InfoHash>, D::Error> {
    Option::<String>::deserialize(deserializer)?.as_deref().map(hash).transpose()
}

fn hash<E: serde::de::Error>(text: &str) -> Result<InfoHash, E> {
    match parse_value(ListKind::Torrents, text) {
        Some((ListValue::Torrent(info_hash), None)) => Ok(info_hash),
        _ => Err(E::custom("an info-hash is 40 or 64 hexadecimal digits")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torrent_is_read_as_it_is_written() {
        let text = format!(
            r#"{{"info_hash":"{}","info_hash_v2":"{}","name":"a","size":7}}"#,
            "0A".repeat(20),
            "0b".repeat(32)
        );
        let torrent: RegisteredTorrent = serde_json::from_str(&text).unwrap();
        let hashes: Vec<_> = torrent.hashes().collect();
        assert_eq!(hashes, [InfoHash([10; 20]), InfoHash([11; 20])]);
        let again: RegisteredTorrent =
            serde_json::from_str(&serde_json::to_string(&torrent).unwrap()).unwrap();
        assert_eq!(again, torrent);
    }

    #[test]
    fn what_is_no_torrent_is_refused() {
        for bad in [r#"{}"#, r#"{"info_hash":"12"}"#, r#"{"info_hash":7}"#, "[]"] {
            assert!(serde_json::from_str::<RegisteredTorrent>(bad).is_err(), "{bad}");
        }
        let unknown = format!(r#"{{"info_hash":"{}","nme":"a"}}"#, "0a".repeat(20));
        assert!(serde_json::from_str::<RegisteredTorrent>(&unknown).is_err());
        let long =
            RegisteredTorrent { name: Some("x".repeat(1025)), ..RegisteredTorrent::default() };
        assert_eq!(long.fault().unwrap().0, "name");
        assert_eq!(RegisteredTorrent::default().fault(), None);
    }
}
