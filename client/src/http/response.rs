//! The head of an answer, as octets, and how its content ends (RFC 9112 section 6).
//!
//! Guarantees: pure; whoever reads an answer knows where it ends: by its length, by chunks, or by the
//! end of the connection, which then follows.

use http::{HeaderValue, Method, Response, StatusCode, Version, header};

use super::{body::Body, request::Request};

/// How the content of an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    Nothing,
    /// After so many octets.
    Length(u64),
    /// With a last chunk.
    Chunks,
    /// With the connection: HTTP/1.0 knows no chunks.
    Connection,
}

impl Framing {
    /// How this answer to `request` ends.
    pub fn of(request: &Request, response: &Response<Body>) -> Self {
        let bare = matches!(response.status(), StatusCode::NOT_MODIFIED | StatusCode::NO_CONTENT);
        match response.body().length() {
            _ if bare || request.method == Method::HEAD => Self::Nothing,
            Some(length) => Self::Length(length),
            None if request.is_old => Self::Connection,
            None => Self::Chunks,
        }
    }
}

/// The head of an answer to `request`, or to what is none. `date` is what the clock says, as in
/// `Date`.
pub(super) fn head(
    response: &Response<Body>,
    framing: Framing,
    is_old: bool,
    persists: bool,
    date: &str,
) -> Vec<u8> {
    let version = if is_old { Version::HTTP_10 } else { Version::HTTP_11 };
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or_default();
    let mut head = format!("{version:?} {} {reason}\r\n", status.as_str()).into_bytes();
    let mut field = |name: &str, value: &[u8]| {
        head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    };
    for (name, value) in response.headers() {
        // What there is none of may have a length all the same (RFC 9110 section 8.6).
        if *name != header::CONTENT_LENGTH || framing == Framing::Nothing {
            field(name.as_str(), value.as_bytes());
        }
    }
    match framing {
        Framing::Length(length) => field("content-length", length.to_string().as_bytes()),
        Framing::Chunks => field("transfer-encoding", b"chunked"),
        Framing::Nothing | Framing::Connection => {}
    }
    match (is_old, persists) {
        (false, false) => field("connection", b"close"),
        (true, true) => field("connection", b"keep-alive"),
        _ => {}
    }
    field("date", date.as_bytes());
    head.extend(b"\r\n");
    head
}

/// What answers a request that was refused: the connection ends with it.
pub(super) fn refusal(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::Nothing);
    *response.status_mut() = status;
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{
        super::request::{Parsed, parse},
        *,
    };

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn request(text: &str) -> Box<Request> {
        match parse(format!("{text}\r\n\r\n").as_bytes()) {
            Parsed::Whole(request, _) => request,
            other => panic!("{other:?}"),
        }
    }

    fn told(request: &Request, response: &Response<Body>, persists: bool) -> String {
        let framing = Framing::of(request, response);
        let head = head(response, framing, request.is_old, persists, DATE);
        String::from_utf8(head).unwrap()
    }

    #[test]
    fn heads_octet_by_octet() {
        let get = request("GET / HTTP/1.1");
        let text = || Response::new(Body::Text(Bytes::from_static(b"hello")));
        assert_eq!(
            told(&get, &text(), true),
            format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ndate: {DATE}\r\n\r\n")
        );
        assert_eq!(
            told(&request("GET / HTTP/1.0"), &text(), true),
            format!(
                "HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\ndate: {DATE}\r\n\r\n"
            )
        );
        let refused =
            head(&refusal(StatusCode::METHOD_NOT_ALLOWED), Framing::Length(0), false, false, DATE);
        assert_eq!(
            String::from_utf8(refused).unwrap(),
            format!(
                "HTTP/1.1 405 Method Not Allowed\r\nallow: GET, HEAD\r\ncontent-length: 0\r\nconnection: close\r\ndate: {DATE}\r\n\r\n"
            )
        );
    }

    #[test]
    fn a_length_that_was_not_counted_here_is_told_only_where_nothing_follows() {
        let answer = |status: u16| {
            let mut response = Response::new(Body::Nothing);
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response.headers_mut().insert("content-length", HeaderValue::from_static("197"));
            response
        };
        let (get, head) = (request("GET / HTTP/1.1"), request("HEAD / HTTP/1.1"));
        for (request, status, length) in
            [(&get, 304, 197), (&get, 416, 0), (&head, 200, 197), (&head, 416, 197)]
        {
            let told = told(request, &answer(status), true);
            assert_eq!(told.matches("content-length").count(), 1, "{told}");
            assert!(told.contains(&format!("content-length: {length}\r\n")), "{status}: {told}");
        }
    }
}
