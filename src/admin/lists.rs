//! `/api/v1/access`: the lists of who and what is served. A change through the API also changes the
//! files; a change by hand in a file needs a reload.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::Uri;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde::Serialize;
use serde_json::Value as Field;

use super::api::{Caller, Parameters, work};
use super::body::BodyFields;
use super::problem::ApiError;
use super::{Admin, NOT_KEPT, Process, Routes};
use crate::access::lists::{ListKind, ListName, ListValue, parse_value, reason};
use crate::access_store::{AccessError, AccessManager, Change, Edit};

/// Maximum number of values of one edit.
const EDITED_MAX: usize = 10_000;

/// The JSON fields of an edit.
const ADD: &str = "add";
const REMOVE: &str = "remove";

/// The routes of the lists.
pub(super) fn routes<P: Process>() -> Routes<P> {
    vec![
        ("/api/v1/access", get(overview::<P>)),
        ("/api/v1/access/reload", post(reload::<P>)),
        ("/api/v1/access/{kind}/{side}", get(page::<P>).post(edit::<P>)),
        (
            "/api/v1/access/{kind}/{side}/{value}",
            get(read_entry::<P>).put(add::<P>).delete(remove::<P>),
        ),
    ]
}

/// A list in a response.
#[derive(Serialize)]
struct Summary {
    list: &'static str,
    entries: usize,
    /// Whether the list refuses anything.
    in_force: bool,
    /// The list's file.
    file: Option<String>,
}

#[derive(Serialize)]
struct Overview {
    mode: &'static str,
    lists: Vec<Summary>,
}

/// Serves the mode and all lists, without their entries.
async fn overview<P: Process>(
    State(admin): State<Admin<P>>,
    uri: Uri,
) -> Result<impl IntoResponse, ApiError> {
    Parameters::of(&uri)?.end()?;
    let look = |access_manager: &AccessManager| {
        let lists = access_manager.access().lists();
        let summary = |name: ListName| Summary {
            list: name.label(),
            entries: lists.get(name).len(),
            in_force: lists.is_in_force(name),
            file: access_manager.path(name).map(|it| it.display().to_string()),
        };
        let mode = access_manager.access().mode().label();
        Ok(Overview { mode, lists: ListName::ALL.map(summary).into() })
    };
    Ok(([NOT_KEPT], Json(work(&admin, move |access_manager, _| look(access_manager)).await?)))
}

/// A change in a response.
#[derive(Serialize)]
struct Changed {
    list: &'static str,
    added: usize,
    removed: usize,
    changed: usize,
    entries: usize,
}

impl From<Change> for Changed {
    fn from(change: Change) -> Self {
        let Change { name, added, removed, changed, entries } = change;
        Self { list: name.label(), added, removed, changed, entries }
    }
}

#[derive(Serialize)]
struct Reloaded {
    lists: Vec<Changed>,
}

/// Reads all list files again.
async fn reload<P: Process>(
    State(admin): State<Admin<P>>,
    Caller(who): Caller,
) -> Result<impl IntoResponse, ApiError> {
    let reload = move |access_manager: &AccessManager| {
        let first =
            |them: Vec<AccessError>| them.into_iter().next().unwrap_or(AccessError::Unknown);
        let changes = access_manager.reload(who).map_err(first)?;
        Ok(changes.into_iter().map(Changed::from).collect())
    };
    let lists = work(&admin, move |access_manager, _| reload(access_manager)).await?;
    Ok(([NOT_KEPT], Json(Reloaded { lists })))
}

/// An entry in a response.
#[derive(Serialize)]
struct ListEntry {
    value: String,
    reason: Option<String>,
    /// That of the registered torrent.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

impl ListEntry {
    fn all(access_manager: &AccessManager, found: &[(ListValue, Option<&str>)]) -> Vec<Self> {
        let hash = |(value, _): &(ListValue, Option<&str>)| match value {
            ListValue::Torrent(info_hash) => Some(*info_hash),
            _ => None,
        };
        // A list has values of one kind: all of them are torrents, or none is.
        let hashes: Option<Vec<_>> = found.iter().map(hash).collect();
        let records = hashes.map_or_else(Vec::new, |hashes| access_manager.records(&hashes));
        let names = records.into_iter().map(|record| record?.name).chain(std::iter::repeat(None));
        let entry = |((value, reason), name): (&(ListValue, Option<&str>), Option<String>)| Self {
            value: value.to_string(),
            reason: reason.map(str::to_owned),
            name,
        };
        found.iter().zip(names).map(entry).collect()
    }
}

#[derive(Serialize)]
struct ListPage {
    entries: Vec<ListEntry>,
    /// `after` of the next page, if there is one.
    next: Option<String>,
}

/// Serves a page of a list.
async fn page<P: Process>(
    State(admin): State<Admin<P>>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
) -> Result<impl IntoResponse, ApiError> {
    let name = path.map(|Path((kind, side))| name(&kind, &side)).unwrap_or(None);
    let name = name.ok_or_else(ApiError::no_such_list)?;
    let mut parameters = Parameters::of(&uri)?;
    let limit = parameters.limit()?;
    let after = parameters.take("after")?;
    let after = after.map(|it| value("after", name, &it)).transpose()?;
    parameters.end()?;
    let look = move |access_manager: &AccessManager| {
        let lists = access_manager.access().lists();
        // One entry more shows whether there is another page.
        let mut found = lists.get(name).page(after.as_ref(), limit + 1);
        let is_last = found.len() <= limit;
        found.truncate(limit);
        let entries = ListEntry::all(access_manager, &found);
        let next = entries.last().filter(|_| !is_last).map(|it| it.value.clone());
        Ok(ListPage { entries, next })
    };
    Ok(([NOT_KEPT], Json(work(&admin, move |access_manager, _| look(access_manager)).await?)))
}

/// Changes many values at once.
async fn edit<P: Process>(
    State(admin): State<Admin<P>>,
    Caller(who): Caller,
    path: Result<Path<(String, String)>, PathRejection>,
    body: Result<Bytes, BytesRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let name = path.map(|Path((kind, side))| name(&kind, &side)).unwrap_or(None);
    let name = name.ok_or_else(ApiError::no_such_list)?;
    let mut fields = BodyFields::of(body)?;
    let (add, remove) = (fields.list(ADD)?, fields.list(REMOVE)?);
    fields.end()?;
    if add.len() + remove.len() > EDITED_MAX {
        let problem = "must have at most 10000 values, together with remove";
        return Err(ApiError::bad_parameter(ADD, problem));
    }
    let mut edit = Edit::default();
    for value in add {
        push_added(&mut edit, name, value)?;
    }
    for json in remove {
        let text = json.as_str().ok_or_else(|| not_one(REMOVE, name, None))?;
        edit.remove.extend(values(REMOVE, name, text)?);
    }
    let change =
        work(&admin, move |access_manager, _| access_manager.edit(name, &edit, who)).await?;
    Ok(([NOT_KEPT], Json(Changed::from(change))))
}

/// Adds an item of `add` to an edit: a value, or an object as in a page of a list.
fn push_added(edit: &mut Edit, name: ListName, value: Field) -> Result<(), ApiError> {
    let (text, reason) = match value {
        Field::String(text) => (Some(text), None),
        Field::Object(fields) => {
            let mut fields = BodyFields::from(fields);
            let taken = (fields.text("value")?, fields.text("reason")?);
            // An entry of a response can be sent as it is; the name is that of a registration.
            fields.text("name")?;
            fields.end()?;
            taken
        }
        _ => (None, None),
    };
    let text = text.ok_or_else(|| not_one(ADD, name, None))?;
    let reason = sound(reason)?;
    edit.add.extend(values(ADD, name, &text)?.map(|it| (it, reason.clone())));
    Ok(())
}

/// Serves the entry of exactly this value.
async fn read_entry<P: Process>(
    State(admin): State<Admin<P>>,
    place: ListPath,
) -> Result<impl IntoResponse, ApiError> {
    let ListPath { name, first, .. } = place;
    let look = move |access_manager: &AccessManager| {
        let lists = access_manager.access().lists();
        let found = lists.get(name).get(&first).map(|reason| (first, reason));
        Ok(ListEntry::all(access_manager, found.as_slice()).pop())
    };
    let found = work(&admin, move |access_manager, _| look(access_manager)).await?;
    Ok(([NOT_KEPT], Json(found.ok_or_else(ApiError::not_listed)?)))
}

/// Adds a value to a list, with or without a reason.
async fn add<P: Process>(
    State(admin): State<Admin<P>>,
    Caller(who): Caller,
    place: ListPath,
    body: Result<Bytes, BytesRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let mut fields = BodyFields::of(body)?;
    let reason = sound(fields.text("reason")?)?;
    fields.end()?;
    let add = place.values().map(|it| (it, reason.clone())).collect();
    let edit = Edit { add, remove: Vec::new() };
    let change =
        work(&admin, move |access_manager, _| access_manager.edit(place.name, &edit, who)).await?;
    Ok(([NOT_KEPT], Json(Changed::from(change))))
}

/// Removes a value from a list.
async fn remove<P: Process>(
    State(admin): State<Admin<P>>,
    Caller(who): Caller,
    place: ListPath,
) -> Result<impl IntoResponse, ApiError> {
    let edit = Edit { add: Vec::new(), remove: place.values().collect() };
    let change =
        work(&admin, move |access_manager, _| access_manager.edit(place.name, &edit, who)).await?;
    if change.removed == 0 {
        return Err(ApiError::not_listed());
    }
    Ok(([NOT_KEPT], Json(Changed::from(change))))
}

/// A list and its values, from a path.
struct ListPath {
    name: ListName,
    first: ListValue,
    second: Option<ListValue>,
}

impl ListPath {
    fn values(&self) -> impl Iterator<Item = ListValue> + use<> {
        [Some(self.first), self.second].into_iter().flatten()
    }
}

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for ListPath {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut http::request::Parts,
        state: &S,
    ) -> Result<Self, ApiError> {
        type Parts = (String, String, String);
        let path = Path::<Parts>::from_request_parts(parts, state).await;
        // A path that cannot be decoded names no list.
        let Path((kind, side, text)) = path.map_err(|_| ApiError::no_such_list())?;
        let name = name(&kind, &side).ok_or_else(ApiError::no_such_list)?;
        let found =
            parse_value(name.kind(), &text).ok_or_else(|| not_one("value", name, Some(&text)))?;
        Ok(Self { name, first: found.0, second: found.1 })
    }
}

/// The list that two parts of a path name.
fn name(kind: &str, side: &str) -> Option<ListName> {
    let is_it = |list_name: &&ListName| {
        list_name.label().strip_prefix(kind).and_then(|rest| rest.strip_prefix('_')) == Some(side)
    };
    ListName::ALL.iter().find(is_it).copied()
}

/// Parses one value of a parameter.
fn value(field: &'static str, name: ListName, text: &str) -> Result<ListValue, ApiError> {
    parse_value(name.kind(), text).map(|it| it.0).ok_or_else(|| not_one(field, name, Some(text)))
}

/// Parses a value, or the two values of a hybrid torrent's magnet link.
fn values(
    field: &'static str,
    name: ListName,
    text: &str,
) -> Result<impl Iterator<Item = ListValue> + use<>, ApiError> {
    let found = parse_value(name.kind(), text).ok_or_else(|| not_one(field, name, Some(text)))?;
    Ok([Some(found.0), found.1].into_iter().flatten())
}

/// The error for what is not a value of a list; for a text that is not a network with the exact
/// reason, as in settings and files.
fn not_one(field: &'static str, name: ListName, text: Option<&str>) -> ApiError {
    let kind = name.kind();
    match text {
        Some(text) if kind == ListKind::Networks => {
            ApiError::bad_parameter(field, kind.expected_instead_of(text))
        }
        _ => ApiError::bad_parameter(field, format!("must be {}", kind.allowed())),
    }
}

/// Checks a reason, which must fit into one line of a file.
fn sound(text: Option<String>) -> Result<Option<String>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    let text = text.trim();
    let fault = |problem: &str| ApiError::bad_parameter("reason", format!("must be {problem}"));
    Ok(reason(text).map_err(fault)?.map(str::to_owned))
}
