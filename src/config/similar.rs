//! "Did you mean": the known name that is closest to an unknown one.

/// The name of `known` that `written` probably stands for: the closest by edit distance, if at most
/// a third of its characters differ, or one of which the other is a beginning. None if two are as
/// close.
pub(super) fn similar<'a>(
    written: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let written = written.to_ascii_lowercase().replace('-', "_");
    let distance = |name: &str| strsim::damerau_levenshtein(&written, &name.replace('-', "_"));
    let begins = |name: &str| {
        written.len() >= 3
            && name.len() >= 3
            && (written.starts_with(name) || name.starts_with(&written))
    };
    let close = |name: &&str| distance(name) <= (name.chars().count() / 3).max(1) || begins(name);
    let known = known.into_iter().filter(|it| !it.is_empty());
    let mut close: Vec<_> = known.filter(close).map(|name| (distance(name), name)).collect();
    close.sort_unstable();
    match close[..] {
        [(one, _), (other, _), ..] if one == other => None,
        [(_, name), ..] => Some(name),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_probably_meant_is_the_closest_name() {
        let known =
            ["interval_s", "interval_s_max", "numwant_max", "listen", "on", "off", "warn", ""];
        for (written, meant) in [
            ("intervall_s", Some("interval_s")),
            ("Interval-S", Some("interval_s")),
            ("interval", Some("interval_s")),
            ("inetrval_s", Some("interval_s")),
            ("listne", Some("listen")),
            ("ont", Some("on")),
            ("of", None), // on or off
            ("warning", Some("warn")),
            ("colour", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(similar(written, known), meant, "{written}");
        }
    }
}
