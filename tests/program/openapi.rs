//! Checks responses against an OpenAPI 3.1 description: just the parts of JSON Schema that ours
//! uses. A keyword that is not known here fails, so that nothing is described and left unchecked.

use serde_json::Value;

/// A description.
pub(crate) struct Description(pub(crate) Value);

impl Description {
    /// Every path, method and status that is described.
    pub(crate) fn responses(&self) -> Vec<(String, String, u16)> {
        let mut all = Vec::new();
        for (path, methods) in self.0["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                for status in operation["responses"].as_object().unwrap().keys() {
                    let method = method.to_uppercase();
                    all.push((path.clone(), method, status.parse().unwrap()));
                }
            }
        }
        all
    }

    /// The methods of a path.
    pub(crate) fn methods(&self, path: &str) -> Vec<String> {
        self.0["paths"][path].as_object().unwrap().keys().map(|it| it.to_uppercase()).collect()
    }

    /// Checks that a response is as described.
    pub(crate) fn check(
        &self,
        (path, method, status): (&str, &str, u16),
        headers: &[(String, String)],
        body: &str,
    ) {
        let operation = &self.0["paths"][path][method.to_lowercase()];
        let response = self.resolved(&operation["responses"][status.to_string()]);
        assert!(response.is_object(), "{method} {path}: {status} is not described");
        let header = |name: &str| {
            let found = headers.iter().find(|it| it.0.eq_ignore_ascii_case(name));
            found.map(|it| it.1.as_str())
        };
        for (name, described) in response["headers"].as_object().into_iter().flatten() {
            let value = header(name).unwrap_or_else(|| panic!("{method} {path}: no {name}"));
            self.check_value(name, &described["schema"], &value.into());
        }
        let (media_type, content) = response["content"].as_object().unwrap().iter().next().unwrap();
        assert_eq!(header("content-type"), Some(media_type.as_str()), "{method} {path}: {status}");
        let value = if media_type == "application/json" {
            serde_json::from_str(body).unwrap()
        } else {
            Value::from(body)
        };
        self.check_value(&format!("{method} {path} {status}"), &content["schema"], &value);
    }

    /// What a reference stands for.
    fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(reference) = value["$ref"].as_str() else { return value };
        let found = self.0.pointer(reference.strip_prefix('#').unwrap());
        found.unwrap_or_else(|| panic!("{reference} leads nowhere"))
    }

    fn check_value(&self, at: &str, schema: &Value, value: &Value) {
        for (keyword, wanted) in schema.as_object().unwrap() {
            let fits = match keyword.as_str() {
                "description" | "default" => true,
                "$ref" => {
                    self.check_value(at, self.resolved(schema), value);
                    true
                }
                "type" => is_of_type(wanted, value),
                "enum" => wanted.as_array().unwrap().contains(value),
                "pattern" => value.as_str().is_none_or(|it| matches(wanted, it)),
                "minLength" => value.as_str().is_none_or(|it| it.len() as u64 >= number(wanted)),
                "minimum" => value.as_u64().is_none_or(|it| it >= number(wanted)),
                "maximum" => value.as_u64().is_none_or(|it| it <= number(wanted)),
                "maxItems" => value.as_array().is_none_or(|it| it.len() as u64 <= number(wanted)),
                "required" => wanted
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|it| value.get(it.as_str().unwrap()).is_some()),
                "items" => {
                    let items = value.as_array().into_iter().flatten().enumerate();
                    items.for_each(|(n, it)| self.check_value(&format!("{at}[{n}]"), wanted, it));
                    true
                }
                "properties" | "additionalProperties" => {
                    self.check_properties(at, schema, value);
                    true
                }
                "anyOf" => wanted.as_array().unwrap().iter().any(|json| {
                    let kind = &self.resolved(json)["type"];
                    let fits = is_of_type(kind, value);
                    if fits {
                        self.check_value(at, json, value);
                    }
                    fits
                }),
                other => panic!("{at}: the keyword {other} is not known here"),
            };
            assert!(fits, "{at}: {value} breaks {keyword}: {wanted}");
        }
    }

    fn check_properties(&self, at: &str, schema: &Value, value: &Value) {
        for (name, json) in value.as_object().into_iter().flatten() {
            let at = format!("{at}.{name}");
            match (&schema["properties"][name], &schema["additionalProperties"]) {
                (Value::Null, Value::Bool(false)) => panic!("{at} is not described"),
                (Value::Null, Value::Null | Value::Bool(true)) => {}
                (Value::Null, schema) | (schema, _) => self.check_value(&at, schema, json),
            }
        }
    }
}

fn is_of_type(wanted: &Value, value: &Value) -> bool {
    match wanted.as_str() {
        None => wanted.as_array().unwrap().iter().any(|it| is_of_type(it, value)),
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some(other) => panic!("the type {other} is not known here"),
    }
}

fn number(wanted: &Value) -> u64 {
    wanted.as_u64().unwrap()
}

/// The one pattern there is.
fn matches(pattern: &Value, text: &str) -> bool {
    assert_eq!(pattern, "^[0-9a-f]{40}$", "this pattern is not known here");
    text.len() == 40 && text.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'))
}
