//! The fields of a request's body: one JSON object, in which each field comes once and is taken
//! once.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::json::Strict;
use super::problem::ApiError;

/// The fields of a body.
pub(super) struct BodyFields {
    fields: Map<String, Value>,
    /// The names that were asked for.
    known: Vec<&'static str>,
}

impl BodyFields {
    /// Parses a body; an empty one has no fields.
    pub(super) fn of(body: Result<Bytes, BytesRejection>) -> Result<Self, ApiError> {
        let body = body.map_err(|error| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => ApiError::long_body(),
            _ => ApiError::bad_body("it cannot be received"),
        })?;
        if body.is_empty() {
            return Ok(Map::new().into());
        }
        match serde_json::from_slice(&body) {
            Ok(Strict(Value::Object(fields))) => Ok(fields.into()),
            Ok(Strict(_)) => Err(ApiError::bad_body("it is another JSON value")),
            Err(error) => Err(ApiError::bad_body(&error.to_string())),
        }
    }

    /// Takes a field; `None` if it is absent or null.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.fields.remove(name).filter(|it| !it.is_null())
    }

    /// Takes a text.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(ApiError::bad_parameter(name, "must be a string")),
        }
    }

    /// Takes a whole number.
    pub(super) fn number(&mut self, name: &'static str) -> Result<Option<u64>, ApiError> {
        let problem = || ApiError::bad_parameter(name, "must be a whole number from 0 on");
        self.take(name).map(|it| it.as_u64().ok_or_else(problem)).transpose()
    }

    /// Takes a number of 32 bits.
    pub(super) fn short(&mut self, name: &'static str) -> Result<Option<u32>, ApiError> {
        let problem = |_| ApiError::bad_parameter(name, "must be a whole number below 4294967296");
        self.number(name)?.map(|it| u32::try_from(it).map_err(problem)).transpose()
    }

    /// Takes a list.
    pub(super) fn list(&mut self, name: &'static str) -> Result<Vec<Value>, ApiError> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(them)) => Ok(them),
            Some(_) => Err(ApiError::bad_parameter(name, "must be an array")),
        }
    }

    /// Fails if a field is left: it would be ignored silently.
    pub(super) fn end(self) -> Result<(), ApiError> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(name) => Err(ApiError::unknown_field(name, &self.known)),
        }
    }
}

impl From<Map<String, Value>> for BodyFields {
    fn from(fields: Map<String, Value>) -> Self {
        Self { fields, known: Vec::new() }
    }
}
