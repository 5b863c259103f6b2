//! From a request to a response: which file, which part, which headers.
//!
//! Guarantees: only the script, the kernel, the initrds and the EFI image of one generation can be reached, under
//! its token; HEAD and GET have the same headers; every response has a `Content-Length`.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    ops::Range,
    sync::Arc,
};

use axum::{
    body::Body,
    http::{HeaderValue, Method, Request, Response, StatusCode, header},
};
use bytes::Bytes;

use super::{
    Server,
    body::BlobBody,
    conditional::{Selection, Validators, select},
};
use crate::{
    download::{Download, printable},
    event::{Fact, Protocol, Role},
    image::{Blob, Generation},
    ipxe,
    mac::MacAddr,
};

/// Answers HEAD and GET.
pub(super) fn answer(server: &Server, request: &Request<Body>) -> Response<Body> {
    let Some((mac, file)) = parse_path(request.uri().path(), &server.generation.token) else {
        return plain(StatusCode::NOT_FOUND, "not found\n");
    };
    if !server.admission.admitted(mac) {
        return plain(StatusCode::NOT_FOUND, "not found\n");
    }
    match find(&server.generation, &file) {
        Some(Role::Script) => match ipxe::script(&server.generation, &server.base, mac) {
            Ok(text) => script(server, request, mac, Role::Script, text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
        },
        Some(Role::Autoexec) => {
            let url = ipxe::machine_url(&server.generation, &server.base, mac) + "/boot.ipxe";
            script(server, request, mac, Role::Autoexec, ipxe::autoexec(&url))
        }
        Some(role) => match blob(&server.generation, role) {
            Some(blob) => {
                // Firmware goes by it (RFC 5970 names none; EDK2 knows this one, and the name).
                let media_type = match role {
                    Role::Efi => "application/efi",
                    _ => "application/octet-stream",
                };
                respond(server, request, mac, role, &Content::Blob(blob.clone(), media_type))
            }
            None => missing(server, mac, &file),
        },
        None => missing(server, mac, &file),
    }
}

/// `/<token>/<mac>/<file>`; doubled slashes count as one, for firmware does not follow redirects.
fn parse_path(path: &str, token: &str) -> Option<(MacAddr, String)> {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    if parts.next()? != token {
        return None;
    }
    let mac = parts.next()?.parse().ok()?;
    Some((mac, parts.collect::<Vec<_>>().join("/")))
}

/// What `file` is for, if there is such a file.
fn find(generation: &Generation, file: &str) -> Option<Role> {
    match file {
        "boot.ipxe" => Some(Role::Script),
        "autoexec.ipxe" => Some(Role::Autoexec),
        "kernel" => Some(Role::Kernel),
        "boot.efi" => Some(Role::Efi),
        _ => (0..generation.initrds.len())
            .find(|number| file == format!("initrd{number}"))
            .map(Role::Initrd),
    }
}

fn blob(generation: &Generation, role: Role) -> Option<&Blob> {
    match role {
        Role::Kernel => Some(&generation.kernel),
        Role::Initrd(number) => generation.initrds.get(number),
        Role::Efi => generation.efi.as_ref().ok().map(|image| &image.blob),
        _ => None,
    }
}

/// No such file.
fn missing(server: &Server, mac: MacAddr, file: &str) -> Response<Body> {
    let fact = Fact::NotFound { protocol: Protocol::Http, file: printable(file.as_bytes()) };
    server.witness.fact(mac, fact);
    plain(StatusCode::NOT_FOUND, "not found\n")
}

/// What is sent.
enum Content {
    Blob(Blob, &'static str),
    Text { text: Bytes, etag: String },
}

impl Content {
    fn validators(&self) -> Validators<'_> {
        match self {
            Self::Blob(blob, _) => Validators {
                etag: &blob.etag,
                last_modified: Some(&blob.last_modified),
                length: blob.length,
            },
            Self::Text { text, etag } => Validators {
                etag,
                last_modified: None,
                length: u64::try_from(text.len()).unwrap_or(u64::MAX),
            },
        }
    }

    fn media_type(&self) -> &'static str {
        match self {
            Self::Blob(_, media_type) => media_type,
            Self::Text { .. } => "text/plain; charset=utf-8",
        }
    }

    fn body(&self, part: Range<u64>, download: Option<Download>) -> Body {
        match self {
            Self::Blob(blob, _) => Body::new(BlobBody::new(blob.content.clone(), part, download)),
            Self::Text { text, .. } => {
                if let Some(mut download) = download {
                    download.progress(part.end);
                    download.done(0);
                }
                let bounds = usize::try_from(part.start).ok().zip(usize::try_from(part.end).ok());
                let text = bounds.and_then(|(start, end)| text.get(start..end));
                Body::from(text.map(Bytes::copy_from_slice).unwrap_or_default())
            }
        }
    }
}

fn script(
    server: &Server,
    request: &Request<Body>,
    mac: MacAddr,
    role: Role,
    text: String,
) -> Response<Body> {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let content =
        Content::Text { etag: format!("\"{:016x}\"", hasher.finish()), text: text.into() };
    respond(server, request, mac, role, &content)
}

fn respond(
    server: &Server,
    request: &Request<Body>,
    mac: MacAddr,
    role: Role,
    content: &Content,
) -> Response<Body> {
    let file = content.validators();
    let is_get = request.method() == Method::GET;
    let (status, part) = match select(request.headers(), is_get, file) {
        Selection::Whole => (StatusCode::OK, 0..file.length),
        Selection::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Selection::NotModified => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            put(&mut response, header::ETAG, file.etag);
            // The length that a 200 would have (RFC 9110 section 8.6), or HEAD would be given a 0.
            let length = file.length.to_string();
            put(&mut response, header::CONTENT_LENGTH, &length);
            return response;
        }
        Selection::Failed => {
            return plain(
                StatusCode::PRECONDITION_FAILED,
                "the file is not the one that was expected\n",
            );
        }
        Selection::Unsatisfiable => {
            let mut response =
                plain(StatusCode::RANGE_NOT_SATISFIABLE, "the file is shorter than that\n");
            let range = format!("bytes */{}", file.length);
            put(&mut response, header::CONTENT_RANGE, &range);
            return response;
        }
    };
    // A part that stops short of the end is a look at the file, not a download of it.
    let download = (is_get && part.end == file.length).then(|| {
        let witness = Arc::clone(&server.witness);
        Download::new(witness, mac, Protocol::Http, role, file.length)
    });
    let body = if is_get { content.body(part.clone(), download) } else { Body::empty() };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    put(&mut response, header::CONTENT_TYPE, content.media_type());
    put(&mut response, header::ETAG, file.etag);
    put(&mut response, header::ACCEPT_RANGES, "bytes");
    let length = part.end - part.start;
    put(&mut response, header::CONTENT_LENGTH, &length.to_string());
    if let Some(date) = file.last_modified {
        put(&mut response, header::LAST_MODIFIED, date);
    }
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {}-{}/{}", part.start, part.end - 1, file.length);
        put(&mut response, header::CONTENT_RANGE, &range);
    }
    response
}

/// A short text, for people.
fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = status;
    put(&mut response, header::CONTENT_TYPE, "text/plain; charset=utf-8");
    put(&mut response, header::CONTENT_LENGTH, &text.len().to_string());
    response
}

/// Every value here is made of digits, tags and dates of our own; one that is not a header value
/// is left out.
fn put(response: &mut Response<Body>, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
