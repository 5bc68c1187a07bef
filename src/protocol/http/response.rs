//! The head of a response.

use crate::protocol::bencode::decimal;

/// The head of a response. Date and server name are left out: no client of a tracker reads them.
#[derive(Clone, Copy, Debug)]
pub struct HttpResponseHead<'a> {
    /// Status code and reason phrase.
    pub status: &'static str,
    /// Media type of the body.
    pub content_type: &'static str,
    /// Further header fields, each with its line end.
    pub fields: &'a str,
    /// Length of the body in bytes; `None` if the body itself shows its length, or ends with the
    /// connection.
    pub body_bytes: Option<usize>,
    /// The options of `Connection`. Empty: the field is left out, which means keep-alive in
    /// HTTP/1.1.
    pub connection: &'static str,
}

impl HttpResponseHead<'_> {
    /// Appends the head to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(self.status.as_bytes());
        out.extend_from_slice(b"\r\nContent-Type: ");
        out.extend_from_slice(self.content_type.as_bytes());
        if let Some(bytes) = self.body_bytes {
            out.extend_from_slice(b"\r\nContent-Length: ");
            decimal(out, bytes as u64);
        }
        if !self.connection.is_empty() {
            out.extend_from_slice(b"\r\nConnection: ");
            out.extend_from_slice(self.connection.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(self.fields.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_independent_parser_reads_every_field() {
        let head = HttpResponseHead {
            status: "404 Not Found",
            content_type: "text/plain",
            fields: "Vary: Accept-Encoding\r\n",
            body_bytes: Some(17),
            connection: "close",
        };
        let mut out = Vec::new();
        head.write(&mut out);
        let mut headers = [httparse::EMPTY_HEADER; 8];
        let mut response = httparse::Response::new(&mut headers);
        assert_eq!(response.parse(&out).unwrap(), httparse::Status::Complete(out.len()));
        assert_eq!((response.code, response.reason), (Some(404), Some("Not Found")));
        let read: Vec<_> = response.headers.iter().map(|it| (it.name, it.value)).collect();
        let expected: [(&str, &[u8]); 4] = [
            ("Content-Type", b"text/plain"),
            ("Content-Length", b"17"),
            ("Connection", b"close"),
            ("Vary", b"Accept-Encoding"),
        ];
        assert_eq!(read, expected);
    }
}
