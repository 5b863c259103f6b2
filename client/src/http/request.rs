//! The head of a request, from its octets (RFC 9112).
//!
//! Guarantees: pure; at most [`MAX_HEAD`] octets and [`MAX_FIELDS`] fields, and nothing behind the
//! head is looked at; a request that brings content is refused, so that what follows a head is always
//! the next one, and nobody can hide a request in another's content. Trusts httparse to tell octets
//! that are no head, folded lines among them (section 5.2).

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};

/// Octets of a head: as many as servers usually take (hyper, nginx: 8 to 16 KiB). A machine's is below
/// one.
pub(super) const MAX_HEAD: usize = 16 * 1024;

/// Fields of a head.
const MAX_FIELDS: usize = 100;

/// What is asked: HEAD or GET, without content.
#[derive(Debug)]
pub(super) struct Request {
    /// HEAD or GET.
    pub method: Method,
    /// Path and query; in absolute form with the rest, which nobody looks at (section 3.2.2).
    pub uri: Uri,
    /// The fields.
    pub headers: HeaderMap,
    /// HTTP/1.0: knows no chunks.
    pub is_old: bool,
    /// The connection stays for the next request (section 9.3).
    pub persists: bool,
}

/// What the octets so far are.
#[derive(Debug)]
pub(super) enum Parsed {
    /// The beginning of a head.
    Partial,
    /// A head of so many octets.
    Whole(Box<Request>, usize),
    /// Nothing that is answered otherwise; the connection ends with it.
    Refused(StatusCode),
}

/// Reads the head that `octets` begin with. Empty lines before it do not count (section 2.2).
pub(super) fn parse(octets: &[u8]) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let bounded = octets.get(..MAX_HEAD).unwrap_or(octets);
    match head.parse(bounded) {
        Ok(httparse::Status::Complete(length)) => match read(&head) {
            Ok(request) => Parsed::Whole(Box::new(request), length),
            Err(status) => Parsed::Refused(status),
        },
        Ok(httparse::Status::Partial) if octets.len() < MAX_HEAD => Parsed::Partial,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            Parsed::Refused(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
        }
        Err(httparse::Error::Version) => Parsed::Refused(StatusCode::HTTP_VERSION_NOT_SUPPORTED),
        Err(_) => Parsed::Refused(StatusCode::BAD_REQUEST),
    }
}

/// A whole head. What httparse leaves out of one does not come up.
fn read(head: &httparse::Request<'_, '_>) -> Result<Request, StatusCode> {
    let bad = StatusCode::BAD_REQUEST;
    let method = match head.method {
        Some("GET") => Method::GET,
        Some("HEAD") => Method::HEAD,
        _ => return Err(StatusCode::METHOD_NOT_ALLOWED),
    };
    let uri = head.path.and_then(|target| target.parse::<Uri>().ok()).ok_or(bad)?;
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for field in &*head.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| bad)?;
        headers.append(name, HeaderValue::from_bytes(field.value).map_err(|_| bad)?);
    }
    if brings_content(&headers) {
        return Err(bad);
    }
    let is_old = head.version == Some(0);
    let persists = if is_old { says(&headers, "keep-alive") } else { !says(&headers, "close") };
    Ok(Request { method, uri, headers, is_old, persists })
}

/// RFC 9112 section 6.3. That is refused as RFC 9110 section 9.3.1 allows: such a GET means nothing.
fn brings_content(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    headers.contains_key(header::TRANSFER_ENCODING) || lengths.any(|length| length != "0")
}

/// Whether `Connection` lists this option (RFC 9110 section 7.6.1).
fn says(headers: &HeaderMap, option: &str) -> bool {
    let fields = headers.get_all(header::CONNECTION).iter();
    let mut listed = fields.filter_map(|value| value.to_str().ok()).flat_map(|it| it.split(','));
    listed.any(|one| one.trim().eq_ignore_ascii_case(option))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(octets: &[u8]) -> (Box<Request>, usize) {
        match parse(octets) {
            Parsed::Whole(request, length) => (request, length),
            other => panic!("{other:?}: {}", String::from_utf8_lossy(octets)),
        }
    }

    fn refusal(octets: &[u8]) -> u16 {
        match parse(octets) {
            Parsed::Refused(status) => status.as_u16(),
            other => panic!("{other:?}: {}", String::from_utf8_lossy(octets)),
        }
    }

    #[test]
    fn a_head_is_whole_at_its_last_octet_and_not_before() {
        let head = b"GET /a/b?c=d HTTP/1.1\r\nHost: x\r\nRange: bytes=1-\r\n\r\n";
        for end in 0..head.len() {
            assert!(matches!(parse(&head[..end]), Parsed::Partial), "{end}");
        }
        let (request, length) = whole(head);
        assert_eq!((request.method, length), (Method::GET, head.len()));
        assert_eq!((request.uri.path(), request.uri.query()), ("/a/b", Some("c=d")));
        assert_eq!(request.headers["range"], "bytes=1-");
        assert!(request.persists && !request.is_old);
    }

    #[test]
    fn what_follows_a_head_is_not_looked_at() {
        let head = b"HEAD / HTTP/1.1\r\n\r\n";
        let (request, length) = whole(&[&head[..], b"\0\xff GET"].concat());
        assert_eq!((request.method, length), (Method::HEAD, head.len()));
        // Lines that end with LF alone, and empty ones before (RFC 9112 section 2.2).
        assert_eq!(whole(b"\r\n\nGET / HTTP/1.1\nA: b\n\nGET").1, 24);
    }

    #[test]
    fn the_connection_persists_as_version_and_field_say() {
        for (version, field, persists) in [
            ("1.1", "", true),
            ("1.1", "Connection: keep-alive\r\n", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "connection: Upgrade , CLOSE\r\n", false),
            ("1.1", "Connection: x\r\nConnection: close\r\n", false),
            ("1.1", "Connection: closed\r\n", true),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: close\r\n", false),
        ] {
            let (request, _) = whole(format!("GET / HTTP/{version}\r\n{field}\r\n").as_bytes());
            assert_eq!((request.persists, request.is_old), (persists, version == "1.0"), "{field}");
        }
    }

    #[test]
    fn targets_of_every_form() {
        for (target, path) in [
            ("/", "/"),
            ("//a///b", "//a///b"),
            ("http://other:80/a?b", "/a"),
            ("HTTP://other", "/"),
            ("*", "*"),
            ("/%2e%2e/a", "/%2e%2e/a"),
        ] {
            let (request, _) = whole(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes());
            assert_eq!(request.uri.path(), path);
        }
        for target in ["", "http://", "/\u{7f}", "a:b:c"] {
            let head = format!("GET {target} HTTP/1.1\r\n\r\n");
            assert_eq!(refusal(head.as_bytes()), 400, "{target}");
        }
    }

    #[test]
    fn content_is_refused_and_its_absence_may_be_said() {
        for field in [
            "Content-Length: 5",
            "Content-Length: 0\r\nContent-Length: 5",
            "Content-Length: 00",
            "Content-Length: +0",
            "Content-Length: 0, 0",
            "Content-Length:",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: identity\r\nContent-Length: 0",
        ] {
            let head = format!("GET / HTTP/1.1\r\n{field}\r\n\r\n");
            assert_eq!(refusal(head.as_bytes()), 400, "{field}");
        }
        whole(b"GET / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n");
        // What is waited for does not come (RFC 9110 section 10.1.1).
        whole(b"GET / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n");
    }

    #[test]
    fn what_is_no_head_of_ours_is_refused_as_what_it_is() {
        for (octets, status) in [
            (&b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"[..], 405),
            (b"CONNECT a:1 HTTP/1.1\r\n\r\n", 405),
            (b"get / HTTP/1.1\r\n\r\n", 405),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
            (b"GET / HTTP/1.2\r\n\r\n", 505),
            (b"GET / HTTP/11\r\n\r\n", 505),
            (b"GET / http/1.1\r\n\r\n", 505),
            (b"GET /\r\n\r\n", 400),
            (b"GET  / HTTP/1.1\r\n\r\n", 400),
            // A folded line, and what looks like one (RFC 9112 sections 5.2 and 2.2).
            (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n A: b\r\n\r\n", 400),
            // A blank before the colon hides a field from some (section 5.1).
            (b"GET / HTTP/1.1\r\nContent-Length : 5\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nA: \0\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
            // The first octets of TLS.
            (b"\x16\x03\x01\x02\x00\x01", 400),
        ] {
            assert_eq!(refusal(octets), status, "{}", String::from_utf8_lossy(octets));
        }
    }

    #[test]
    fn a_head_has_bounds() {
        let field = |length: usize| format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(length));
        let short = (field(MAX_HEAD - 23) + "\r\n\r\n").into_bytes();
        assert_eq!(whole(&short).1, MAX_HEAD);
        assert!(matches!(parse(&short[..MAX_HEAD - 1]), Parsed::Partial));
        assert_eq!(refusal((field(MAX_HEAD - 22) + "\r\n\r\n").as_bytes()), 431);
        let fields = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
        assert_eq!(whole(fields(MAX_FIELDS).as_bytes()).0.headers.len(), MAX_FIELDS);
        assert_eq!(refusal(fields(MAX_FIELDS + 1).as_bytes()), 431);
    }

    proptest! {
        /// However a head is torn, and whatever follows it, it is the same head.
        #[test]
        fn any_octets_are_read_alike_in_one_and_in_parts(
            lines in proptest::collection::vec("(GET /a HTTP/1.[012]|[A-Za-z]{1,3}: ?[ -~]{0,9}|[ -~]{0,9})?\r?\n", 0..5),
            after in proptest::collection::vec(any::<u8>(), 0..9),
        ) {
            let octets = [lines.concat().as_bytes(), &after].concat();
            let first = (0..=octets.len()).map(|end| parse(&octets[..end]))
                .find(|parsed| !matches!(parsed, Parsed::Partial));
            match (first, parse(&octets)) {
                (Some(Parsed::Whole(_, one)), Parsed::Whole(_, other)) => prop_assert_eq!(one, other),
                (Some(Parsed::Refused(one)), Parsed::Refused(other)) => prop_assert_eq!(one, other),
                (None, Parsed::Partial) => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
