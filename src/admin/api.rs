//! `/api/v1`: the tracker's torrents and peers for operators' tools, and its orderly stop. `lists`,
//! `registrations` and `passkeys` have the routes for what it serves.
//!
//! A walk over the whole store takes milliseconds per million torrents. It runs on a thread of its
//! own, one walk at a time: further walks wait, and the listener keeps serving.

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{ConnectInfo, FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;

use super::problem::ApiError;
use super::{Admin, JSON, NOT_KEPT, Process, Routes, lists, live, passkeys, registrations};
use crate::access_store::{AccessError, AccessManager, Actor, RegisteredTorrent};
use crate::time::Now;
use crate::tracker::{ListedPeer, Listing, Role, TorrentOrder};
use crate::types::{InfoHash, PeerKind, ScrapeEntry};

/// Maximum number of entries in one response.
const LIMIT_MAX: usize = 1000;
/// Entries in one response, by default.
const LIMIT_DEFAULT: usize = 100;

/// The API's description.
const OPENAPI: &str = include_str!("openapi.json");

/// The routes of the API.
pub(super) fn routes<P: Process>() -> Routes<P> {
    let mut routes: Routes<P> = vec![
        ("/api/v1/openapi.json", get(async || (JSON, OPENAPI))),
        ("/api/v1/torrents", get(torrents::<P>).post(registrations::register::<P>)),
        ("/api/v1/torrents/{info_hash}", get(torrent::<P>).delete(registrations::unregister::<P>)),
        ("/api/v1/status", get(live::status::<P>)),
        ("/api/v1/save", post(save::<P>)),
        // For tools that can only send GET. `access` refuses pages in browsers.
        ("/save_state", get(save::<P>)),
        ("/api/v1/shutdown", post(shutdown::<P>)),
    ];
    routes.extend(lists::routes());
    routes.extend(registrations::routes());
    routes.extend(passkeys::routes());
    routes
}

/// The sender of a request, for the log.
pub(super) struct Caller(pub(super) Actor);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let from = ConnectInfo::<SocketAddr>::from_request_parts(parts, state).await;
        Ok(Self(Actor::Api(from.ok().map(|ConnectInfo(address)| address))))
    }
}

/// Runs work that may wait for a disk on another thread, so that the listener keeps serving.
pub(super) async fn work<P: Process, T: Send + 'static>(
    admin: &Admin<P>,
    act: impl FnOnce(&AccessManager, Now) -> Result<T, AccessError> + Send + 'static,
) -> Result<T, ApiError> {
    let process = admin.process.clone();
    let done = spawn_blocking(move || act(&process.access_manager(), process.now()));
    Ok(done.await.map_err(|_| ApiError::broken())??)
}

/// A torrent in a response. `name`, `size` and `registered_s` are those of its registration, null
/// without one.
#[derive(Serialize)]
pub(super) struct TorrentBody {
    info_hash: String,
    name: Option<String>,
    size: Option<u64>,
    registered_s: Option<u64>,
    seeders: u32,
    leechers: u32,
    downloaders: u32,
    completed: u32,
}

impl TorrentBody {
    pub(super) fn new(
        info_hash: &InfoHash,
        record: Option<RegisteredTorrent>,
        counts: &ScrapeEntry,
    ) -> Self {
        let registered_s = record.as_ref().map(|it| it.registered_s);
        let (name, size) = record.map(|it| (it.name, it.size)).unwrap_or_default();
        Self {
            info_hash: info_hash.to_string(),
            name,
            size,
            registered_s,
            seeders: counts.seeders,
            leechers: counts.leechers,
            downloaders: counts.downloaders,
            completed: counts.completed,
        }
    }
}

/// A peer in a response.
#[derive(Serialize)]
struct PeerBody {
    address: Option<String>,
    kind: &'static str,
    role: &'static str,
    age_s: u32,
}

impl From<&ListedPeer> for PeerBody {
    fn from(peer: &ListedPeer) -> Self {
        let kind = match peer.address {
            Some(address) if address.is_ipv4() => PeerKind::V4,
            Some(_) => PeerKind::V6,
            None => PeerKind::Web,
        };
        let role = match peer.role {
            Role::Leecher => "leecher",
            Role::Paused => "paused",
            Role::Seeder => "seeder",
        };
        let address = peer.address.map(|it| it.to_string());
        Self { address, kind: kind.label(), role, age_s: peer.age_s }
    }
}

#[derive(Serialize)]
pub(super) struct TorrentsResponse {
    pub(super) torrents: Vec<TorrentBody>,
    /// `after` of the next page, if there is one.
    pub(super) next: Option<String>,
}

/// Serves the largest torrents, or a page of all torrents in the order of their info-hashes:
/// announced ones, or registered ones.
async fn torrents<P: Process>(
    State(admin): State<Admin<P>>,
    uri: Uri,
) -> Result<impl IntoResponse, ApiError> {
    let mut parameters = Parameters::of(&uri)?;
    let limit = parameters.limit()?;
    let order = parameters.take("sort")?.map(|it| order(&it)).transpose()?;
    let after = parameters.take("after")?;
    let after = after.map(|it| info_hash("after", &it)).transpose()?;
    let is_registered = parameters.flag("registered")?;
    parameters.end()?;
    if order.is_some() && after.is_some() {
        return Err(ApiError::bad_parameter("after", "cannot be combined with sort"));
    }
    if order.is_some() && is_registered {
        return Err(ApiError::bad_parameter("registered", "cannot be combined with sort"));
    }
    let page = if is_registered {
        registrations::page(&admin, after, limit).await?
    } else {
        announced(&admin, order, after, limit).await?
    };
    Ok(([NOT_KEPT], Json(page)))
}

/// The largest announced torrents, or a page of all.
async fn announced<P: Process>(
    admin: &Admin<P>,
    order: Option<TorrentOrder>,
    after: Option<InfoHash>,
    limit: usize,
) -> Result<TorrentsResponse, ApiError> {
    let mut listed = walk(admin, move |listing| match order {
        Some(order) => listing.torrents_by(order, limit),
        // One torrent more shows whether there is another page.
        None => listing.torrents_after(after.as_ref(), limit + 1),
    })
    .await?;
    let is_last = listed.len() <= limit;
    listed.truncate(limit);
    let next = listed.last().filter(|_| !is_last).map(|it| it.info_hash.to_string());
    let hashes: Vec<_> = listed.iter().map(|it| it.info_hash).collect();
    let records = work(admin, move |access_manager, _| Ok(access_manager.records(&hashes))).await?;
    let torrents = listed.iter().zip(records);
    let torrents = torrents.map(|(it, record)| TorrentBody::new(&it.info_hash, record, &it.counts));
    Ok(TorrentsResponse { torrents: torrents.collect(), next })
}

#[derive(Serialize)]
struct TorrentResponse {
    #[serde(flatten)]
    torrent: TorrentBody,
    peers: Vec<PeerBody>,
    /// `skip` of the next page, if there is one.
    next: Option<usize>,
}

/// Serves one torrent, by any of its hashes, with a page of its peers.
async fn torrent<P: Process>(
    State(admin): State<Admin<P>>,
    digits: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<impl IntoResponse, ApiError> {
    // A path that cannot be decoded is not a hash.
    let named = info_hash("info_hash", digits.as_deref().map_or("", String::as_str))?;
    let mut parameters = Parameters::of(&uri)?;
    let limit = parameters.limit()?;
    let skip = parameters.number("skip", "must be a number from 0 on")?.unwrap_or(0);
    parameters.end()?;
    let now: Now = admin.process.now();
    let record =
        work(&admin, move |access_manager, _| Ok(access_manager.records(&[named]))).await?;
    let record = record.into_iter().next().flatten();
    let info_hash = record.as_ref().map_or(named, |it| it.info_hash);
    let found = walk(&admin, move |listing| listing.torrent(&info_hash, now, skip, limit)).await?;
    // A registered torrent exists, also before its first announce.
    let unannounced = record.is_some().then(|| (ScrapeEntry::default(), Vec::new()));
    let found = found.map(|(listed, peers)| (listed.counts, peers)).or(unannounced);
    let (counts, peers) = found.ok_or_else(ApiError::unknown_torrent)?;
    let all = u64::from(counts.seeders) + u64::from(counts.leechers);
    let behind = skip.saturating_add(peers.len());
    let next = (!peers.is_empty() && (behind as u64) < all).then_some(behind);
    let peers = peers.iter().map(PeerBody::from).collect();
    let torrent = TorrentBody::new(&info_hash, record, &counts);
    Ok(([NOT_KEPT], Json(TorrentResponse { torrent, peers, next })))
}

#[derive(Serialize)]
struct SaveResponse {
    status: &'static str,
}

/// Saves now what is kept in memory and would be saved later.
async fn save<P: Process>(State(admin): State<Admin<P>>) -> Result<impl IntoResponse, ApiError> {
    let process = admin.process.clone();
    spawn_blocking(move || process.save()).await.map_err(|_| ApiError::broken())??;
    Ok(([NOT_KEPT], Json(SaveResponse { status: "saved" })))
}

#[derive(Serialize)]
struct ShutdownResponse {
    status: &'static str,
}

/// Starts the orderly stop.
async fn shutdown<P: Process>(State(admin): State<Admin<P>>) -> impl IntoResponse {
    admin.process.shut_down();
    (StatusCode::ACCEPTED, [NOT_KEPT], Json(ShutdownResponse { status: "stopping" }))
}

/// Walks over the store, once no other walk is running.
pub(super) async fn walk<P: Process, T: Send + 'static>(
    admin: &Admin<P>,
    look: impl FnOnce(&Listing) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let permit = admin.walk.clone().acquire_owned().await.map_err(|_| ApiError::broken())?;
    walk_with(permit, admin, look).await
}

/// Walks over the store with the permit for that.
pub(super) async fn walk_with<P: Process, T: Send + 'static>(
    permit: OwnedSemaphorePermit,
    admin: &Admin<P>,
    look: impl FnOnce(&Listing) -> T + Send + 'static,
) -> Result<T, ApiError> {
    let process = admin.process.clone();
    let done = spawn_blocking(move || {
        let found = look(&process.listing());
        drop(permit); // here, so that it is held to the end even if the request is cancelled
        found
    });
    done.await.map_err(|_| ApiError::broken())
}

/// A query's parameters; each is taken once.
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    pub(super) fn of(uri: &Uri) -> Result<Self, ApiError> {
        Query::try_from_uri(uri).map(|Query(it)| Self(it)).map_err(|_| ApiError::bad_query())
    }

    pub(super) fn take(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        let Some(at) = self.0.iter().position(|it| it.0 == name) else { return Ok(None) };
        let (_, value) = self.0.swap_remove(at);
        if self.0.iter().any(|it| it.0 == name) {
            return Err(ApiError::bad_parameter(name, "must be given once"));
        }
        Ok(Some(value))
    }

    fn number(
        &mut self,
        name: &'static str,
        what: &'static str,
    ) -> Result<Option<usize>, ApiError> {
        let number = |it: String| it.parse().map_err(|_| ApiError::bad_parameter(name, what));
        self.take(name)?.map(number).transpose()
    }

    /// Takes a parameter that is true or false; false if it is absent.
    pub(super) fn flag(&mut self, name: &'static str) -> Result<bool, ApiError> {
        match self.take(name)?.as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(ApiError::bad_parameter(name, "must be true or false")),
        }
    }

    pub(super) fn limit(&mut self) -> Result<usize, ApiError> {
        const WHAT: &str = "must be a number from 1 to 1000";
        let limit = self.number("limit", WHAT)?.unwrap_or(LIMIT_DEFAULT);
        let fits = (1..=LIMIT_MAX).contains(&limit);
        if fits { Ok(limit) } else { Err(ApiError::bad_parameter("limit", WHAT)) }
    }

    /// Fails if a parameter is left: it would be ignored silently.
    pub(super) fn end(self) -> Result<(), ApiError> {
        if self.0.is_empty() { Ok(()) } else { Err(ApiError::bad_query()) }
    }
}

fn order(text: &str) -> Result<TorrentOrder, ApiError> {
    match text {
        "peers" => Ok(TorrentOrder::Peers),
        "seeders" => Ok(TorrentOrder::Seeders),
        "completed" => Ok(TorrentOrder::Completed),
        _ => Err(ApiError::bad_parameter("sort", "must be peers, seeders or completed")),
    }
}

/// Parses the info-hash of a parameter: v1, or v2, of which the first 20 bytes count (BEP 52).
pub(super) fn info_hash(field: &'static str, digits: &str) -> Result<InfoHash, ApiError> {
    let problem = || ApiError::bad_parameter(field, "must be 40 or 64 hexadecimal digits");
    let is_hex = digits.bytes().all(|it| it.is_ascii_hexdigit());
    let v1 = match digits.len() {
        64 if is_hex => &digits[..40],
        _ => digits,
    };
    InfoHash::from_hex(v1).ok_or_else(problem)
}
