//! Registered torrents, and unknown hashes that resemble them.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::Serialize;

use super::api::{Caller, TorrentBody, TorrentsResponse, info_hash, work};
use super::body::BodyFields;
use super::problem::ApiError;
use super::{Admin, NOT_KEPT, Process, Routes};
use crate::access::lists::{ListKind, ListValue, parse_value};
use crate::access::registry::Similar;
use crate::access_store::{AccessError, AccessManager, RegisteredTorrent};
use crate::types::InfoHash;

/// Maximum number of similar hashes in one response.
const SIMILAR_MAX: usize = 1000;

/// The routes of registrations alone; `api` has those that announced torrents share.
pub(super) fn routes<P: Process>() -> Routes<P> {
    vec![
        ("/add_torrent_info", post(register::<P>)),
        ("/api/v1/torrents/{info_hash}/registration", get(registration::<P>)),
        ("/api/v1/torrents/{info_hash}/similar", get(similar::<P>)),
    ]
}

/// Registers a torrent.
pub(super) async fn register<P: Process>(
    State(admin): State<Admin<P>>,
    Caller(who): Caller,
    body: Result<Bytes, BytesRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let torrent = torrent(BodyFields::of(body)?)?;
    let register =
        move |access_manager: &AccessManager, now| access_manager.register(torrent, now, who);
    let done = work(&admin, register).await?;
    let status = if done.created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, [NOT_KEPT], Json(done.torrent)))
}

/// A page of the registered torrents in the order of their hashes.
pub(super) async fn page<P: Process>(
    admin: &Admin<P>,
    after: Option<InfoHash>,
    limit: usize,
) -> Result<TorrentsResponse, ApiError> {
    let process = admin.process.clone();
    let read = move |access_manager: &AccessManager| {
        // One torrent more shows whether there is another page.
        let mut found = access_manager.registered_after(after.as_ref(), limit + 1)?;
        let is_last = found.len() <= limit;
        found.truncate(limit);
        let next = found.last().filter(|_| !is_last).map(|it| it.info_hash.to_string());
        let listing = process.listing();
        let torrent = |record: RegisteredTorrent| {
            let info_hash = record.info_hash;
            TorrentBody::new(&info_hash, Some(record), &listing.counts(&info_hash))
        };
        Ok(TorrentsResponse { torrents: found.into_iter().map(torrent).collect(), next })
    };
    work(admin, move |access_manager, _| read(access_manager)).await
}

/// Unregisters a torrent.
pub(super) async fn unregister<P: Process>(
    State(admin): State<Admin<P>>,
    Caller(who): Caller,
    digits: Result<Path<String>, PathRejection>,
) -> Result<impl IntoResponse, ApiError> {
    #[derive(Serialize)]
    struct UnregisterResponse {
        status: &'static str,
    }
    let info_hash = info_hash("info_hash", digits.as_deref().map_or("", String::as_str))?;
    let unregister =
        move |access_manager: &AccessManager| access_manager.unregister(&info_hash, who);
    work(&admin, move |access_manager, _| unregister(access_manager)).await?;
    Ok(([NOT_KEPT], Json(UnregisterResponse { status: "unregistered" })))
}

/// Serves the record of a registered torrent.
async fn registration<P: Process>(
    State(admin): State<Admin<P>>,
    digits: Result<Path<String>, PathRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let info_hash = info_hash("info_hash", digits.as_deref().map_or("", String::as_str))?;
    let torrent =
        work(&admin, move |access_manager, _| access_manager.registered(&info_hash)).await?;
    Ok(([NOT_KEPT], Json(torrent)))
}

/// A hash that was refused.
#[derive(Serialize)]
struct Refused {
    info_hash: String,
    refused: u64,
    age_s: u64,
}

#[derive(Serialize)]
struct SimilarResponse {
    info_hash: String,
    registered: bool,
    /// Registered torrents that the hash resembles.
    resembles: Vec<String>,
    /// Unknown hashes that were refused because they resemble this one.
    refused: Vec<Refused>,
    /// Names of the torrents that are registered, this one included, by their hash here.
    names: BTreeMap<String, String>,
}

/// Serves the hashes that a hash resembles, and those that resemble it.
async fn similar<P: Process>(
    State(admin): State<Admin<P>>,
    digits: Result<Path<String>, PathRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let info_hash = info_hash("info_hash", digits.as_deref().map_or("", String::as_str))?;
    let look = move |access_manager: &AccessManager, now: crate::time::Now| {
        let access = access_manager.access();
        if !access.mode().needs_registration() {
            return Err(AccessError::Open);
        }
        let registry = access.registry();
        let refused = |similar: Similar| Refused {
            info_hash: similar.info_hash.to_string(),
            refused: similar.refused,
            age_s: now.ns_since(similar.last) / 1_000_000_000,
        };
        let seen = registry.similar_to(&info_hash);
        let mut hashes = vec![info_hash];
        hashes.extend(registry.resembled(&info_hash).into_iter().take(SIMILAR_MAX));
        let records = access_manager.records(&hashes);
        let named = |(hash, record): (&InfoHash, Option<RegisteredTorrent>)| {
            Some((hash.to_string(), record?.name?))
        };
        Ok(SimilarResponse {
            info_hash: info_hash.to_string(),
            registered: registry.canonical(&info_hash).is_some(),
            resembles: hashes[1..].iter().map(ToString::to_string).collect(),
            refused: seen.into_iter().take(SIMILAR_MAX).map(refused).collect(),
            names: hashes.iter().zip(records).filter_map(named).collect(),
        })
    };
    Ok(([NOT_KEPT], Json(work(&admin, look).await?)))
}

/// Parses a torrent from the fields of a body.
fn torrent(mut fields: BodyFields) -> Result<RegisteredTorrent, ApiError> {
    const HASH: &str = "must be 40 or 64 hexadecimal digits";
    let mut hash = |name: &'static str| -> Result<Option<InfoHash>, ApiError> {
        let Some(text) = fields.text(name)? else { return Ok(None) };
        match parse_value(ListKind::Torrents, &text) {
            Some((ListValue::Torrent(info_hash), None)) => Ok(Some(info_hash)),
            _ => Err(ApiError::bad_parameter(name, HASH)),
        }
    };
    let info_hash = hash("info_hash")?;
    let info_hash = info_hash.ok_or_else(|| ApiError::bad_parameter("info_hash", HASH))?;
    let info_hash_v2 = hash("info_hash_v2")?;
    let torrent = RegisteredTorrent {
        info_hash,
        info_hash_v2,
        name: fields.text("name")?,
        size: fields.number("size")?,
        piece_length: fields.number("piece_length")?,
        comment: fields.text("comment")?,
        created_by: fields.text("created_by")?,
        created_s: fields.number("created_s")?,
        registered_s: 0,
    };
    fields.end()?;
    match torrent.fault() {
        Some((field, message)) => Err(ApiError::bad_parameter(field, message)),
        None => Ok(torrent),
    }
}
