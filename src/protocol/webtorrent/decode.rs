//! From text to request. Clients use different types for a field, so each field is read leniently
//! and a wrong value is recorded, not refused: the message is checked once all of it has been read.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    AnnounceMessage, AnswerRequest, DESCRIPTION_BYTES_MAX, DESCRIPTION_DEPTH_MAX, InvalidMessage,
    MessageError, MessageMethod, Offer, OfferId, SCRAPE_HASHES_MAX, Unusable, WebTorrentMessage,
};
use crate::types::{Event, InfoHash, PeerId};

/// Decodes a message. Offers beyond `offers_max` are ignored, offers that no client can use are
/// dropped.
///
/// # Errors
/// [`InvalidMessage`], with the error text for the client.
pub fn decode(message: &[u8], offers_max: usize) -> Result<WebTorrentMessage<'_>, InvalidMessage> {
    let text = std::str::from_utf8(message).ok();
    let mut fields = MessageFields { offers_max: Some(offers_max), ..MessageFields::default() };
    let mut is_read = text.is_some_and(|it| fields.read(it));
    if !is_read {
        // Browsers read numbers and escapes that serde_json does not. If they are within offers,
        // only the offers are lost.
        let unusable = Some(Unusable { count: 1, fault: MessageError::Offers });
        let mut rest = MessageFields { offers_max: None, unusable, ..MessageFields::default() };
        is_read = text.is_some_and(|it| rest.read(it));
        if is_read {
            fields = rest;
        }
    }
    let (method, info_hash) = (fields.method(), fields.info_hash().ok());
    let judged = if is_read { fields.judge() } else { Err(MessageError::Json) };
    judged.map_err(|fault| InvalidMessage { fault, method, info_hash })
}

/// The fields of a message, as far as they are valid.
#[derive(Default)]
struct MessageFields<'a> {
    action: ActionField,
    info_hash: Hashes,
    peer_id: Latin1Hash,
    to_peer_id: Latin1Hash,
    offer_id: Latin1Hash,
    left: Option<Left>,
    uploaded: Option<Left>,
    downloaded: Option<Left>,
    numwant: Numwant,
    event: Happened,
    offers: Vec<Offer<'a>>,
    unusable: Option<Unusable>,
    /// Most offers to read; `None`: offers are skipped, whatever they contain.
    offers_max: Option<usize>,
    answer: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Action,
    InfoHash,
    PeerId,
    ToPeerId,
    OfferId,
    Left,
    Uploaded,
    Downloaded,
    Numwant,
    Event,
    Offers,
    Answer,
    #[serde(other)]
    Other,
}

impl<'a> MessageFields<'a> {
    /// Reads the fields of a message. True if it was a JSON object and nothing else.
    fn read(&mut self, text: &'a str) -> bool {
        let mut json = serde_json::Deserializer::from_str(text);
        self.deserialize(&mut json).and_then(|()| json.end()).is_ok()
    }

    fn method(&self) -> Option<MessageMethod> {
        self.action.0
    }

    fn info_hash(&self) -> Result<InfoHash, MessageError> {
        match self.info_hash {
            Hashes::One(hash) => Ok(hash),
            _ => Err(MessageError::InfoHash),
        }
    }

    fn judge(self) -> Result<WebTorrentMessage<'a>, MessageError> {
        match self.method().ok_or(MessageError::Action)? {
            MessageMethod::Scrape => self.scrape(),
            MessageMethod::Announce if self.answer.is_some_and(is_answer) => self.answer(),
            MessageMethod::Announce => self.announce(),
        }
    }

    fn scrape(self) -> Result<WebTorrentMessage<'a>, MessageError> {
        match self.info_hash {
            Hashes::One(hash) => Ok(WebTorrentMessage::Scrape(vec![hash])),
            Hashes::Many(mut hashes) => {
                // They become keys of one JSON object: no client could read the second of two equal
                // ones.
                hashes.sort_unstable();
                hashes.dedup();
                Ok(WebTorrentMessage::Scrape(hashes))
            }
            Hashes::TooMany => Err(MessageError::InfoHashes),
            Hashes::Absent => Err(MessageError::FullScrape),
            Hashes::Wrong => Err(MessageError::InfoHash),
        }
    }

    fn announce(self) -> Result<WebTorrentMessage<'a>, MessageError> {
        Ok(WebTorrentMessage::Announce(AnnounceMessage {
            info_hash: self.info_hash()?,
            peer_id: PeerId(self.peer_id.bytes(MessageError::PeerId)?),
            uploaded: moved(self.uploaded),
            downloaded: moved(self.downloaded),
            left: self.left.map_or(u64::MAX, |it| it.0),
            event: self.event.0,
            numwant: self.numwant.0,
            offers: self.offers,
            unusable: self.unusable,
        }))
    }

    fn answer(self) -> Result<WebTorrentMessage<'a>, MessageError> {
        Ok(WebTorrentMessage::Answer(AnswerRequest {
            info_hash: self.info_hash()?,
            peer_id: PeerId(self.peer_id.bytes(MessageError::PeerId)?),
            to_peer_id: PeerId(self.to_peer_id.bytes(MessageError::ToPeerId)?),
            offer_id: OfferId(self.offer_id.bytes(MessageError::OfferId)?),
            text: self.answer.and_then(description).ok_or(MessageError::Answer)?,
        }))
    }
}

/// Fills the fields in place, so that those before a JSON error are kept.
impl<'de> DeserializeSeed<'de> for &mut MessageFields<'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut MessageFields<'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message")
    }

    /// Of repeated names the last is used, as in browsers.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(field) = map.next_key()? {
            match field {
                Field::Action => self.action = lenient(&mut map)?,
                Field::InfoHash => self.info_hash = lenient(&mut map)?,
                Field::PeerId => self.peer_id = lenient(&mut map)?,
                Field::ToPeerId => self.to_peer_id = lenient(&mut map)?,
                Field::OfferId => self.offer_id = lenient(&mut map)?,
                Field::Left => self.left = Some(lenient(&mut map)?),
                Field::Uploaded => self.uploaded = Some(lenient(&mut map)?),
                Field::Downloaded => self.downloaded = Some(lenient(&mut map)?),
                Field::Numwant => self.numwant = lenient(&mut map)?,
                Field::Event => self.event = lenient(&mut map)?,
                Field::Offers => {
                    let Some(offers_max) = self.offers_max else {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    let list = map.next_value_seed(Lenient::<OfferList<'de>>::up_to(offers_max))?;
                    (self.offers, self.unusable) = (list.offers, list.unusable);
                }
                Field::Answer => self.answer = map.next_value()?,
                Field::Other => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(())
    }
}

/// Reads the next value, whatever it is. A value that cannot be read is of a wrong type.
fn lenient<'de, T: Read<'de>, A: MapAccess<'de>>(map: &mut A) -> Result<T, A::Error> {
    let raw: &'de RawValue = map.next_value()?;
    let mut json = serde_json::Deserializer::from_str(raw.get());
    Ok(Lenient::new().deserialize(&mut json).unwrap_or_else(|_| T::wrong()))
}

/// Whether it is an answer. Values that are false in JavaScript are not.
fn is_answer(raw: &RawValue) -> bool {
    !matches!(raw.get(), "false" | "0" | "\"\"")
}

/// The types that a field accepts. Every method that is not overridden returns a value of a wrong
/// type.
trait Read<'de>: Sized {
    fn wrong() -> Self;

    fn null() -> Self {
        Self::wrong()
    }

    fn text(_: &str) -> Self {
        Self::wrong()
    }

    fn number(_: u64) -> Self {
        Self::wrong()
    }

    fn real(_: f64) -> Self {
        Self::wrong()
    }

    fn list<A: SeqAccess<'de>>(list: A, _items_max: usize) -> Result<Self, A::Error> {
        drain(list)?;
        Ok(Self::wrong())
    }

    fn object<A: MapAccess<'de>>(mut object: A) -> Result<Self, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::wrong())
    }
}

fn drain<'de, A: SeqAccess<'de>>(mut list: A) -> Result<(), A::Error> {
    while list.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

/// Reads a `T` from any value. Only invalid JSON is an error.
struct Lenient<T> {
    items_max: usize,
    read: PhantomData<T>,
}

impl<T> Lenient<T> {
    fn new() -> Self {
        Self::up_to(0)
    }

    fn up_to(items_max: usize) -> Self {
        Self { items_max, read: PhantomData }
    }
}

impl<'de, T: Read<'de>> DeserializeSeed<'de> for Lenient<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Read<'de>> Visitor<'de> for Lenient<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E: Error>(self) -> Result<T, E> {
        Ok(T::null())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<T, E> {
        Ok(T::wrong())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        Ok(T::number(number))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<T, E> {
        Ok(T::wrong())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        Ok(T::real(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Ok(T::text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<T, A::Error> {
        T::list(list, self.items_max)
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<T, A::Error> {
        T::object(object)
    }
}

#[derive(Default)]
struct ActionField(Option<MessageMethod>);

impl Read<'_> for ActionField {
    fn wrong() -> Self {
        Self(None)
    }

    fn text(text: &str) -> Self {
        Self(
            [MessageMethod::Announce, MessageMethod::Scrape]
                .into_iter()
                .find(|it| it.name() == text),
        )
    }
}

/// 20 bytes as latin-1 text.
#[derive(Default)]
enum Latin1Hash {
    Bytes([u8; 20]),
    #[default]
    Wrong,
}

impl Latin1Hash {
    fn bytes(&self, fault: MessageError) -> Result<[u8; 20], MessageError> {
        match self {
            Self::Bytes(bytes) => Ok(*bytes),
            Self::Wrong => Err(fault),
        }
    }
}

impl Read<'_> for Latin1Hash {
    fn wrong() -> Self {
        Self::Wrong
    }

    fn text(text: &str) -> Self {
        latin1(text).map_or(Self::Wrong, Self::Bytes)
    }
}

fn latin1(text: &str) -> Option<[u8; 20]> {
    if let Ok(bytes) = <[u8; 20]>::try_from(text.as_bytes())
        && bytes.is_ascii()
    {
        return Some(bytes);
    }
    let mut bytes = [0; 20];
    let mut characters = text.chars();
    for byte in &mut bytes {
        *byte = u8::try_from(characters.next()?).ok()?;
    }
    characters.next().is_none().then_some(bytes)
}

/// One info-hash, or a list of them for a scrape.
#[derive(Default)]
enum Hashes {
    #[default]
    Absent,
    One(InfoHash),
    Many(Vec<InfoHash>),
    TooMany,
    Wrong,
}

impl<'de> Read<'de> for Hashes {
    fn wrong() -> Self {
        Self::Wrong
    }

    fn null() -> Self {
        Self::Absent
    }

    fn text(text: &str) -> Self {
        latin1(text).map_or(Self::Wrong, |bytes| Self::One(InfoHash(bytes)))
    }

    fn list<A: SeqAccess<'de>>(mut list: A, _: usize) -> Result<Self, A::Error> {
        let mut hashes = Vec::new();
        while hashes.len() < SCRAPE_HASHES_MAX {
            match list.next_element_seed(Lenient::new())? {
                Some(Latin1Hash::Bytes(bytes)) => hashes.push(InfoHash(bytes)),
                Some(Latin1Hash::Wrong) => {
                    drain(list)?;
                    return Ok(Self::Wrong);
                }
                None => return Ok(Self::Many(hashes)),
            }
        }
        if list.next_element::<IgnoredAny>()?.is_none() {
            return Ok(Self::Many(hashes));
        }
        drain(list)?;
        Ok(Self::TooMany)
    }
}

/// Bytes left to download. Browsers send null, or nothing, before they have the size. Numbers may
/// be text, or have a fraction, as in languages without integers.
struct Left(u64);

/// A non-negative number, rounded up and clamped to the range of `u64`.
fn rounded_up(number: f64) -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "cut to what fits")]
    (number >= 0.0).then(|| number.ceil() as u64)
}

/// A number that was sent as text.
fn number_of(text: &str) -> Option<u64> {
    text.parse().ok().or_else(|| text.parse().ok().and_then(rounded_up))
}

/// A number of bytes transferred; 0 if it is invalid.
fn moved(total: Option<Left>) -> u64 {
    total.map_or(0, |it| if it.0 == u64::MAX { 0 } else { it.0 })
}

impl Read<'_> for Left {
    fn wrong() -> Self {
        Self(u64::MAX)
    }

    fn number(number: u64) -> Self {
        Self(number)
    }

    fn real(number: f64) -> Self {
        Self(rounded_up(number).unwrap_or(u64::MAX))
    }

    fn text(text: &str) -> Self {
        Self(number_of(text).unwrap_or(u64::MAX))
    }
}

#[derive(Default)]
struct Numwant(Option<u32>);

impl Read<'_> for Numwant {
    fn wrong() -> Self {
        Self(None)
    }

    fn number(number: u64) -> Self {
        let wanted = u32::try_from(number).unwrap_or(u32::MAX);
        Self(Some(wanted).filter(|&it| it > 0))
    }

    fn real(number: f64) -> Self {
        rounded_up(number).map_or_else(Self::wrong, Self::number)
    }

    fn text(text: &str) -> Self {
        number_of(text).map_or_else(Self::wrong, Self::number)
    }
}

struct Happened(Event);

impl Default for Happened {
    fn default() -> Self {
        Self(Event::None)
    }
}

impl Read<'_> for Happened {
    fn wrong() -> Self {
        Self::default()
    }

    fn text(text: &str) -> Self {
        Self(match text {
            "started" => Event::Started,
            "completed" => Event::Completed,
            "stopped" => Event::Stopped,
            "paused" => Event::Paused,
            _ => Event::None,
        })
    }
}

/// The offers of an announce.
#[derive(Default)]
struct OfferList<'a> {
    offers: Vec<Offer<'a>>,
    unusable: Option<Unusable>,
}

impl<'de> Read<'de> for OfferList<'de> {
    fn wrong() -> Self {
        let unusable = Some(Unusable { count: 1, fault: MessageError::Offers });
        Self { offers: Vec::new(), unusable }
    }

    fn null() -> Self {
        Self::default()
    }

    fn list<A: SeqAccess<'de>>(mut list: A, items_max: usize) -> Result<Self, A::Error> {
        let mut read = Self::default();
        while read.offers.len() < items_max {
            match list.next_element_seed(Lenient::<Item<'de>>::new())? {
                Some(Item(Ok(offer))) => read.offers.push(offer),
                Some(Item(Err(fault))) => {
                    read.unusable.get_or_insert(Unusable { count: 0, fault }).count += 1;
                }
                None => return Ok(read),
            }
        }
        drain(list)?;
        Ok(read)
    }
}

struct Item<'a>(Result<Offer<'a>, MessageError>);

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum ItemField {
    Offer,
    OfferId,
    #[serde(other)]
    Other,
}

impl<'de> Read<'de> for Item<'de> {
    fn wrong() -> Self {
        Self(Err(MessageError::Offers))
    }

    fn object<A: MapAccess<'de>>(mut object: A) -> Result<Self, A::Error> {
        let mut id = Latin1Hash::Wrong;
        let mut text: Option<&'de RawValue> = None;
        while let Some(field) = object.next_key()? {
            match field {
                ItemField::Offer => text = Some(object.next_value()?),
                ItemField::OfferId => id = lenient(&mut object)?,
                ItemField::Other => _ = object.next_value::<IgnoredAny>()?,
            }
        }
        Ok(Self(id.bytes(MessageError::OfferId).and_then(|id| {
            let text = text.and_then(description).ok_or(MessageError::Offer)?;
            Ok(Offer { id: OfferId(id), text })
        })))
    }
}

/// The text of a session description that every client can read: an object with a text `sdp`, of
/// bounded length and depth, without numbers or escapes that some readers refuse.
fn description(raw: &RawValue) -> Option<&str> {
    let text = raw.get();
    if text.len() > DESCRIPTION_BYTES_MAX {
        return None;
    }
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(Description).ok().filter(|has_sdp| *has_sdp).map(|_| text)
}

/// Whether an object has a text `sdp`.
struct Description;

impl<'de> Visitor<'de> for Description {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a session description")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<bool, A::Error> {
        let mut has_sdp = false;
        while let Some(MemberName { is_sdp }) = object.next_key()? {
            let kind = object.next_value_seed(Readable { depth_max: DESCRIPTION_DEPTH_MAX - 1 })?;
            if is_sdp {
                has_sdp = kind == Shape::Text;
            }
        }
        Ok(has_sdp)
    }
}

/// The name of a member, read in full and not kept.
struct MemberName {
    is_sdp: bool,
}

impl<'de> Deserialize<'de> for MemberName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Compare;
        impl Visitor<'_> for Compare {
            type Value = MemberName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<MemberName, E> {
                Ok(MemberName { is_sdp: name == "sdp" })
            }
        }
        deserializer.deserialize_str(Compare)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Text,
    Other,
}

/// Reads any value in full, strictly, down to a maximum depth.
#[derive(Clone, Copy)]
struct Readable {
    depth_max: u32,
}

impl Readable {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let depth_max = self.depth_max.checked_sub(1).ok_or_else(|| E::custom("too deep"))?;
        Ok(Self { depth_max })
    }
}

impl<'de> DeserializeSeed<'de> for Readable {
    type Value = Shape;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Readable {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_unit<E: Error>(self) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
        let deeper = self.deeper()?;
        while list.next_element_seed(deeper)?.is_some() {}
        Ok(Shape::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Shape, A::Error> {
        let deeper = self.deeper()?;
        while object.next_key::<MemberName>()?.is_some() {
            object.next_value_seed(deeper)?;
        }
        Ok(Shape::Other)
    }
}
