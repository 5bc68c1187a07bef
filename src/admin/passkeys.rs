//! `/api/v1/passkeys`: the passkeys of a private tracker, their limits and their totals.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::Serialize;
use serde_json::Value;

use super::api::{Caller, Parameters, work};
use super::body::BodyFields;
use super::problem::ApiError;
use super::{Admin, NOT_KEPT, Process, Routes};
use crate::access::mode::Mode;
use crate::access::passkey::{
    Limits, NAME_BYTES_MAX, PEERS_MAX, Record, Totals, Usage, ValidKey, digest_of,
};
use crate::access_store::{AccessError, AccessManager, ImportOutcome, ImportedPasskey};

/// Maximum number of passkeys in one import: their fields fit into a body, and one transaction
/// holds up other changes for milliseconds.
const IMPORTED_MAX: usize = 1000;

/// The routes of passkeys.
pub(super) fn routes<P: Process>() -> Routes<P> {
    vec![
        ("/api/v1/passkeys", get(list::<P>).post(issue::<P>)),
        ("/api/v1/passkeys/import", post(import::<P>)),
        ("/api/v1/passkeys/{id}", get(look::<P>).delete(revoke::<P>)),
    ]
}

/// A passkey in a response: never the key itself.
#[derive(Serialize)]
struct Listed {
    id: String,
    name: String,
    limits: Limits,
    issued_s: u64,
    #[serde(flatten)]
    totals: Totals,
    torrents: u32,
    peers: u32,
    left: u64,
}

impl Listed {
    fn new(id: String, record: Record, usage: Usage) -> Self {
        let Record { name, limits, issued_s, totals } = record;
        let Usage { torrents, peers, left } = usage;
        Self { id, name, limits, issued_s, totals, torrents, peers, left }
    }

    fn of(key: &ValidKey) -> Self {
        Self::new(key.id(), key.record(), key.usage())
    }
}

#[derive(Serialize)]
struct PasskeyPage {
    passkeys: Vec<Listed>,
    /// `after` of the next page, if there is one.
    next: Option<String>,
}

/// Serves a page of passkeys.
async fn list<P: Process>(
    State(admin): State<Admin<P>>,
    uri: Uri,
) -> Result<impl IntoResponse, ApiError> {
    let mut parameters = Parameters::of(&uri)?;
    let limit = parameters.limit()?;
    let after = parameters.take("after")?.unwrap_or_default();
    let name = parameters.take("name")?;
    parameters.end()?;
    let look = move |access_manager: &AccessManager| {
        let all = private(access_manager)?.passkeys().all();
        let is_named = |it: &ValidKey| name.as_deref().is_none_or(|name| it.name() == name);
        let mut rest = all.iter().filter(|it| is_named(it) && it.id() > after);
        let passkeys: Vec<_> = rest.by_ref().take(limit).map(|it| Listed::of(it)).collect();
        let more = rest.next().is_some();
        let next = passkeys.last().filter(|_| more).map(|it| it.id.clone());
        Ok(PasskeyPage { passkeys, next })
    };
    Ok(([NOT_KEPT], Json(work(&admin, move |access_manager, _| look(access_manager)).await?)))
}

#[derive(Serialize)]
struct New {
    /// Only this response contains it.
    passkey: String,
    #[serde(flatten)]
    listed: Listed,
}

/// Issues a passkey.
async fn issue<P: Process>(
    State(admin): State<Admin<P>>,
    Caller(who): Caller,
    body: Result<Bytes, BytesRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let mut fields = BodyFields::of(body)?;
    let (name, limits) = name_and_limits(&mut fields)?;
    fields.end()?;
    let issued =
        work(&admin, move |access_manager, now| access_manager.issue(&name, limits, now, who))
            .await?;
    let listed = Listed::new(issued.id, issued.record, Usage::default());
    let new = New { passkey: issued.passkey, listed };
    Ok((StatusCode::CREATED, [NOT_KEPT], Json(new)))
}

/// Takes the fields of every new passkey: the holder's name, and limits.
fn name_and_limits(fields: &mut BodyFields) -> Result<(String, Limits), ApiError> {
    let name = fields.text("name")?.unwrap_or_default();
    let announces_per_minute = fields.short("announces_per_minute")?;
    let (torrents, peers) = (fields.short("torrents")?, fields.short("peers")?);
    let limits = Limits::of(announces_per_minute, torrents, peers);
    if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let problem = "must be at most 100 bytes without control characters";
        return Err(ApiError::bad_parameter("name", problem));
    }
    if limits.peers > PEERS_MAX {
        return Err(ApiError::bad_parameter("peers", "must be at most 100000"));
    }
    Ok((name, limits))
}

/// The result of an import for one passkey.
#[derive(Serialize)]
struct ImportResult {
    id: String,
    name: String,
    /// `issued`, `imported` or `known`.
    status: &'static str,
    /// A new passkey; only this response contains it.
    passkey: Option<String>,
}

#[derive(Serialize)]
struct ImportResponse {
    /// In the order of the request.
    passkeys: Vec<ImportResult>,
}

/// Adds many passkeys: those that clients of another tracker have, or new ones.
async fn import<P: Process>(
    State(admin): State<Admin<P>>,
    Caller(who): Caller,
    body: Result<Bytes, BytesRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let mut fields = BodyFields::of(body)?;
    let listed = fields.list("passkeys")?;
    fields.end()?;
    if listed.len() > IMPORTED_MAX {
        return Err(ApiError::bad_parameter("passkeys", "must be at most 1000"));
    }
    let passkeys = listed.into_iter().map(imported).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<_> = passkeys.iter().map(|it| it.name.clone()).collect();
    let done = work(&admin, move |access_manager, now| access_manager.import(passkeys, now, who));
    let result = |(name, (id, outcome))| {
        let (status, passkey) = match outcome {
            ImportOutcome::Issued(passkey) => ("issued", Some(passkey)),
            ImportOutcome::Imported => ("imported", None),
            ImportOutcome::Known => ("known", None),
        };
        ImportResult { id, name, status, passkey }
    };
    let passkeys = names.into_iter().zip(done.await?).map(result).collect();
    Ok(([NOT_KEPT], Json(ImportResponse { passkeys })))
}

/// Parses one passkey of an import.
fn imported(value: Value) -> Result<ImportedPasskey, ApiError> {
    let Value::Object(fields) = value else {
        return Err(ApiError::bad_parameter("passkeys", "must be objects"));
    };
    let mut fields = BodyFields::from(fields);
    let (name, limits) = name_and_limits(&mut fields)?;
    let digits = fields.text("passkey")?;
    fields.end()?;
    let problem = || ApiError::bad_parameter("passkey", "must be 32 hexadecimal digits");
    let digest = digits.map(|it| digest_of(&it).ok_or_else(problem)).transpose()?;
    Ok(ImportedPasskey { name, limits, digest })
}

/// Serves one passkey.
async fn look<P: Process>(
    State(admin): State<Admin<P>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let id = id.map(|Path(text)| text).unwrap_or_default();
    let look = move |access_manager: &AccessManager| {
        let key = private(access_manager)?.passkeys().with_id(&id);
        Ok(key.map(|it| Listed::of(&it)))
    };
    let found = work(&admin, move |access_manager, _| look(access_manager)).await?;
    Ok(([NOT_KEPT], Json(found.ok_or_else(ApiError::unknown_passkey)?)))
}

/// Revokes a passkey.
async fn revoke<P: Process>(
    State(admin): State<Admin<P>>,
    Caller(who): Caller,
    id: Result<Path<String>, PathRejection>,
) -> Result<impl IntoResponse, ApiError> {
    #[derive(Serialize)]
    struct RevokeResponse {
        status: &'static str,
    }
    let id = id.map(|Path(text)| text).unwrap_or_default();
    let revoke = move |access_manager: &AccessManager| match access_manager.revoke(&id, who) {
        Err(AccessError::Unknown) => Ok(false),
        done => done.map(|()| true),
    };
    let done = work(&admin, move |access_manager, _| revoke(access_manager)).await?;
    if !done {
        return Err(ApiError::unknown_passkey());
    }
    Ok(([NOT_KEPT], Json(RevokeResponse { status: "revoked" })))
}

fn private(access_manager: &AccessManager) -> Result<&crate::access::Access, AccessError> {
    let access = access_manager.access();
    if access.mode() == Mode::Private { Ok(access) } else { Err(AccessError::NotPrivate) }
}
