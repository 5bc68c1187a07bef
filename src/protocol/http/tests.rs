//! Heads: which are accepted, which are refused, and after how many bytes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A parsed head: method, path, query, whether it is HTTP/1.1, length.
type Read = (Method, String, String, bool, usize);

fn parse(text: &str) -> Result<Option<Read>, Rejected> {
    let mut headers = Headers::default();
    let text_of = |it: &[u8]| String::from_utf8(it.to_vec()).unwrap();
    RequestHead::parse(text.as_bytes(), &mut headers).map(|head| {
        head.map(|it| (it.method, text_of(it.path), text_of(it.query), it.http_1_1, it.bytes))
    })
}

/// Method, path and query of a request line.
fn line(line: &str) -> Result<(Method, String, String), Rejected> {
    let read = parse(&format!("{line}\r\n\r\n"))?.expect("a whole head");
    Ok((read.0, read.1, read.2))
}

#[test]
fn a_request_is_taken_apart() {
    let text = "GET /announce?a=b HTTP/1.1\r\nHost: t\r\nX: y\r\n\r\nGET /next";
    let bytes = text.find("GET /next").unwrap();
    let read = (Method::Get, "/announce".into(), "a=b".into(), true, bytes);
    assert_eq!(parse(text), Ok(Some(read)));
    let mut headers = Headers::default();
    let head = RequestHead::parse(text.as_bytes(), &mut headers).unwrap().unwrap();
    assert_eq!(head.values("host").collect::<Vec<_>>(), [b"t"]);
    let bare = "HEAD / HTTP/1.0\n\n";
    let read = (Method::Head, "/".into(), String::new(), false, bare.len());
    assert_eq!(parse(bare), Ok(Some(read)));
    let after_blanks = "\r\n\r\nGET / HTTP/1.1\r\n\r\n";
    assert_eq!(parse(after_blanks).unwrap().unwrap().4, after_blanks.len());
}

#[test]
fn odd_targets_of_real_clients_are_understood() {
    for (target, path, query) in [
        ("/announce ?info_hash=x", "/announce", "info_hash=x"),
        ("//announce?x", "//announce", "x"),
        (" /announce?x ", "/announce", "x"),
        ("/announce?a=b c", "/announce", "a=b c"),
        ("/announce?a?b=c", "/announce", "a?b=c"),
        ("/announce?p=\u{e9}", "/announce", "p=\u{e9}"),
        ("http://tracker.example:6969/announce?x=1", "/announce", "x=1"),
        ("HTTPS://tracker.example?x=1", "", "x=1"),
        ("http://tracker.example", "", ""),
        ("?info_hash=x", "", "info_hash=x"),
        ("? HTTP", "", " HTTP"),
    ] {
        let expected = (Method::Get, path.to_owned(), query.to_owned());
        assert_eq!(line(&format!("GET {target} HTTP/1.1")), Ok(expected), "{target}");
    }
}

#[test]
fn other_methods_are_told_apart_from_no_request() {
    for text in ["POST / HTTP/1.1", "OPTIONS * HTTP/1.1", "CONNECT a:1 HTTP/1.1", "get / HTTP/1.1"]
    {
        assert_eq!(line(text).unwrap().0, Method::Other, "{text}");
    }
    for text in [
        "GET / HTTP/2.0",
        "GET /",
        "GET / http/1.1",
        "GET HTTP/1.1",
        "GET  HTTP/1.1",
        "GET announce HTTP/1.1",
        "GET http:// HTTP/1.1",
        "GET ftp://a/ HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET /a\rb HTTP/1.1",
        "G\u{e9}T / HTTP/1.1",
        "GET / HTTP/1.1\r\nno colon",
        "GET / HTTP/1.1\r\nX: y\r\n folded",
        "GET / HTTP/1.1\r\nX : y",
        "GET / HTTP/1.1\r\nX: \0",
    ] {
        assert_eq!(line(text), Err(Rejected::BadRequest), "{text:?}");
    }
}

#[test]
fn control_characters_that_end_no_line_are_told_of() {
    let has_controls = |text: &str| {
        let mut headers = Headers::default();
        RequestHead::parse(text.as_bytes(), &mut headers).map(|it| it.expect("a head").has_controls)
    };
    for byte in (1..=b' ').chain([b'~', 0x7f]).filter(|it| !b"\n\r".contains(it)) {
        let byte = char::from(byte);
        let text = format!("GET /announce?x={byte}y HTTP/1.1\r\n\r\n");
        assert_eq!(has_controls(&text), Ok(byte.is_ascii_control()), "{text:?}");
    }
    for byte in ['\0', '\r'] {
        for text in [
            format!("GET /announce?x=\x01{byte}y HTTP/1.1\r\n\r\n"),
            format!("GET /announce?x=y{byte} HTTP/1.1\r\n\r\n"),
            format!("GET {byte}/announce?x=y HTTP/1.1\r\n\r\n"),
        ] {
            assert_eq!(has_controls(&text), Err(Rejected::BadRequest), "{text:?}");
        }
    }
    assert_eq!(has_controls("GET \t/announce?x=y\x0c HTTP/1.1\r\n\r\n"), Ok(true));
    assert_eq!(has_controls("POST /\x01 HTTP/1.1\r\n\r\n"), Ok(false), "refused in any case");
}

#[test]
fn what_is_no_request_is_seen_at_once() {
    assert_eq!(parse("\x16\x03\x01"), Err(Rejected::BadRequest), "TLS");
    assert_eq!(parse(&"A".repeat(METHOD_BYTES_MAX)), Ok(None));
    assert_eq!(parse(&"A".repeat(METHOD_BYTES_MAX + 1)), Err(Rejected::BadRequest));
}

#[test]
fn long_targets_are_refused_before_they_end() {
    let get = |length: usize| format!("GET /{}", "a".repeat(length - 1));
    let whole = |length| format!("{} HTTP/1.1\r\n\r\n", get(length));
    assert!(parse(&whole(TARGET_BYTES_MAX)).unwrap().is_some());
    assert_eq!(parse(&whole(TARGET_BYTES_MAX + 1)), Err(Rejected::LongTarget));
    assert_eq!(parse(&get(TARGET_BYTES_MAX)), Ok(None));
    assert_eq!(parse(&get(TARGET_BYTES_MAX + " HTTP/1.1".len() + 1)), Err(Rejected::LongTarget));
    let scrape = |length: usize| {
        let hashes = "info_hash=".to_owned() + &"%20".repeat(20) + "&";
        let start = "/key/scrape?".to_owned() + &hashes.repeat(length);
        format!("GET {start} HTTP/1.1\r\n\r\n")
    };
    assert!(parse(&scrape(SCRAPE_HASHES_MAX)).unwrap().is_some());
    assert_eq!(parse(&scrape(SCRAPE_HASHES_MAX + 14)), Err(Rejected::LongTarget));
    // A long path is not a scrape, whether or not the rest has arrived.
    let path = get(TARGET_BYTES_MAX + 11);
    assert_eq!(parse(&path), Err(Rejected::LongTarget));
    assert_eq!(parse(&(path + "/scrape?x HTTP/1.1\r\n\r\n")), Err(Rejected::LongTarget));
}

#[test]
fn long_heads_are_refused() {
    let fields = |count: usize| format!("GET / HTTP/1.1\r\n{}", "X: y\r\n".repeat(count));
    assert!(parse(&(fields(HEADERS_MAX) + "\r\n")).unwrap().is_some());
    assert_eq!(parse(&(fields(HEADERS_MAX + 1) + "\r\n")), Err(Rejected::LongHead));
    let start = "GET / HTTP/1.1\r\nX: ";
    let filled = |bytes: usize| start.to_owned() + &"y".repeat(bytes - start.len());
    assert_eq!(parse(&filled(HEAD_BYTES_MAX - 1)), Ok(None));
    assert_eq!(parse(&filled(HEAD_BYTES_MAX)), Err(Rejected::LongHead));
    let fitting = filled(HEAD_BYTES_MAX - 4) + "\r\n\r\n";
    assert_eq!(parse(&fitting).unwrap().unwrap().4, HEAD_BYTES_MAX);
    assert_eq!(parse(&(filled(HEAD_BYTES_MAX - 3) + "\r\n\r\n")), Err(Rejected::LongHead));
    assert_eq!(parse(&"\r\n".repeat(HEAD_BYTES_MAX / 2)), Err(Rejected::LongHead));
    assert_eq!(parse(&"\r\n".repeat(HEAD_BYTES_MAX / 2 - 1)), Ok(None));
}

prop_compose! {
    fn request()(
        method in "[A-Z]{1,10}",
        path in "/[a-z/ ]{0,20}",
        query in "[ -~]{0,40}",
        version in "[01]",
        fields in vec(("[a-zA-Z-]{1,20}", "[ -~]{0,40}"), 0..20),
    ) -> String {
        let fields: String =
            fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{method} {path}?{query} HTTP/1.{version}\r\n{fields}\r\n")
    }
}

proptest! {
    #[test]
    fn every_truncation_of_a_head_wants_more(text in request()) {
        for end in 0..text.len() {
            prop_assert_eq!(parse(&text[..end]), Ok(None), "{}", end);
        }
        let (read, next) = (parse(&text), parse(&(text.clone() + "GET")));
        prop_assert_eq!(read.as_ref().unwrap().as_ref().unwrap().4, text.len());
        prop_assert_eq!(read, next);
    }

    #[test]
    fn no_head_is_too_strange(
        bytes in vec(any::<u8>(), 0..600),
        lines in vec("[ -~]{0,30}", 0..9),
    ) {
        let mut headers = Headers::default();
        let _ = RequestHead::parse(&bytes, &mut headers);
        let mut headers = Headers::default();
        let text = lines.join("\r\n");
        let _ = RequestHead::parse(text.as_bytes(), &mut headers);
    }
}
