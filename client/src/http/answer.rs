//! From a request to a response: which file, which part, which headers.
//!
//! Guarantees: only the script and the files of a machine's own generation can be reached, under the
//! run's token; HEAD and GET have the same headers.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};

use super::{
    Server,
    body::{Body, Part},
    conditional::{Selection, Validators, select},
    remote,
    request::Request,
};
use crate::{
    download::{Download, printable},
    event::{Fact, Ignored, Protocol, Role, Sign},
    image::{Blob, Generation, Payload},
    ipxe,
    mac::MacAddr,
    rpi::neighbour,
    source::{Step, cache::Shared, efi_program},
    template::{Machine, Said},
};

/// The address for booted systems. No token looks like it.
const UP: &str = "/up";

/// Answers HEAD and GET.
pub(super) async fn answer(server: &Server, request: &Request, peer: IpAddr) -> Response<Body> {
    if request.uri.path() == UP {
        return up(server, peer);
    }
    let Some((mac, file)) = parse_path(request.uri.path(), server.source.token()) else {
        return plain(StatusCode::NOT_FOUND, "not found\n");
    };
    if !server.admission.admitted(mac) {
        return plain(StatusCode::NOT_FOUND, "not found\n");
    }
    let Some(role) = find(file.split_once('/').map_or(file.as_str(), |(_, rest)| rest)) else {
        return missing(server, mac, &file);
    };
    let step = match role {
        Role::Script | Role::Efi => Step::Script,
        _ => Step::File,
    };
    let generation = match server.source.generation(mac, step).await {
        Ok(generation) => generation,
        Err(refusal) => {
            let reason = refusal.to_string();
            server.witness.fact(mac, Fact::Ignored(Ignored::Source { reason }));
            return plain(StatusCode::NOT_FOUND, &format!("{refusal}\n"));
        }
    };
    let url = ipxe::machine_url(&generation, &server.base, mac);
    let (generation, rest) = generation.at(&file);
    let (url, script_role) = match file.strip_suffix(rest) {
        Some("") | None if rest.contains('/') => return missing(server, mac, &file),
        Some("") | None => (url, Role::Script),
        // The machine was handed over with the menu.
        Some(folder) => (format!("{url}/{}", folder.trim_end_matches('/')), Role::Autoexec),
    };
    let mut machine = Machine { url, mac, identity: server.admission.identity(mac) };
    let url = machine.url.clone();
    let said = request.uri.query();
    match role {
        Role::Script if generation.asks_ipxe() && said.is_none() => {
            let text = ipxe::introduction(&format!("{url}/boot.ipxe"));
            return script(server, request, mac, Role::Autoexec, text);
        }
        Role::Script => match ipxe::script(&generation, introduced(&mut machine, said)) {
            Ok(text) => return script(server, request, mac, script_role, text),
            Err(error) => {
                return plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n"));
            }
        },
        Role::Autoexec => {
            let text = ipxe::autoexec(&format!("{url}/boot.ipxe"));
            return script(server, request, mac, Role::Autoexec, text);
        }
        Role::Efi => {
            return match efi_program(&generation, &machine).await {
                Ok(blob) if !blob.content.is_unchanged() => changed(server, mac, &blob),
                // Firmware goes by it (RFC 5970 names none; EDK2 knows this one, and the name).
                Ok(blob) => {
                    respond(server, request, mac, role, &Content::Blob(blob, "application/efi"))
                }
                Err(_) => missing(server, mac, &file),
            };
        }
        _ => {}
    }
    match payload(&generation, role, rest) {
        Some(Payload::Local(blob)) if !blob.content.is_unchanged() => changed(server, mac, blob),
        Some(Payload::Local(blob)) => {
            let content = Content::Blob(blob.clone(), "application/octet-stream");
            respond(server, request, mac, role, &content)
        }
        Some(Payload::Remote(remote)) => remote::pass_on(server, request, mac, role, remote).await,
        None => missing(server, mac, &file),
    }
}

/// A booted system says that it is up. It knows this computer's address and port, and no token; who it
/// is follows from its address.
fn up(server: &Server, peer: IpAddr) -> Response<Body> {
    let machine = match (peer, &server.settings.interface) {
        (IpAddr::V4(peer), Some(interface)) => neighbour(peer, interface),
        _ => None,
    };
    match machine.filter(|mac| server.admission.admitted(*mac)) {
        Some(mac) => {
            server.witness.fact(mac, Fact::Up { sign: Sign::Url });
            plain(StatusCode::OK, "welcome\n")
        }
        None => plain(StatusCode::NOT_FOUND, "not found\n"),
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

/// What `file` is for, if it is a name that there could be.
fn find(file: &str) -> Option<Role> {
    match file {
        "boot.ipxe" => Some(Role::Script),
        "autoexec.ipxe" => Some(Role::Autoexec),
        "kernel" => Some(Role::Kernel),
        "boot.efi" => Some(Role::Efi),
        _ => match number(file, "initrd") {
            Some(number) => Some(Role::Initrd(number)),
            None => number(stem(file), "other").map(|_| Role::Other),
        },
    }
}

/// An extra file's name without the end that its address has for the machine's sake.
fn stem(file: &str) -> &str {
    file.split_once('.').map_or(file, |(stem, _)| stem)
}

/// The number after `word`, written as it is written here.
fn number(file: &str, word: &str) -> Option<usize> {
    let digits = file.strip_prefix(word)?;
    digits.parse().ok().filter(|number: &usize| number.to_string() == digits)
}

fn payload<'a>(generation: &'a Generation, role: Role, file: &str) -> Option<&'a Payload> {
    match role {
        Role::Kernel => generation.kernel.as_ref(),
        Role::Initrd(number) => generation.initrds.get(number),
        Role::Other => generation.others.get(number(stem(file), "other")?),
        Role::Loader | Role::Script | Role::Autoexec | Role::Efi | Role::Firmware => None,
    }
}

/// Takes in what iPXE says of its machine in the query of its script's address.
fn introduced<'a>(machine: &'a mut Machine, query: Option<&str>) -> &'a Machine {
    for (name, value) in
        query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='))
    {
        match name {
            "uuid" if !value.is_empty() => machine.identity.uuid = Said::new(value.as_bytes()),
            "serial" => machine.identity.serial = Said::new(&decoded(value)),
            "hostname" => machine.identity.hostname = Said::new(&decoded(value)),
            _ => {}
        }
    }
    machine
}

/// Octets that are written as two digits each, up to what is none.
fn decoded(text: &str) -> Vec<u8> {
    let (pairs, _) = text.as_bytes().as_chunks::<2>();
    let digits = pairs.iter().map_while(|pair| str::from_utf8(pair).ok());
    digits.map_while(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}

/// The file was written to since this machine was told of it: what is there now may be half of two.
fn changed(server: &Server, mac: MacAddr, blob: &Blob) -> Response<Body> {
    let problem =
        "it was changed while this machine was booting: start the machine again".to_owned();
    let text = format!("{}: {problem}\n", blob.name);
    server.witness.fact(mac, Fact::Upstream { file: blob.name.clone(), problem });
    plain(StatusCode::CONFLICT, &text)
}

/// No such file.
fn missing(server: &Server, mac: MacAddr, file: &str) -> Response<Body> {
    let fact = Fact::NotFound { protocol: Protocol::Http, file: printable(file.as_bytes()) };
    server.witness.fact(mac, fact);
    plain(StatusCode::NOT_FOUND, "not found\n")
}

/// What is sent.
pub(super) enum Content {
    Blob(Blob, &'static str),
    /// A copy of what lies on another server, and its octets.
    Shared(Box<Shared>, u64),
    Text {
        text: Bytes,
        etag: String,
    },
}

impl Content {
    fn validators(&self) -> Validators<'_> {
        match self {
            Self::Blob(blob, _) => Validators {
                etag: &blob.etag,
                last_modified: Some(&blob.last_modified),
                length: blob.length,
            },
            Self::Shared(shared, length) => Validators {
                etag: &shared.held.copy.tag,
                last_modified: shared.held.copy.terms.last_modified.as_deref(),
                length: *length,
            },
            Self::Text { text, etag } => Validators {
                etag,
                last_modified: None,
                length: u64::try_from(text.len()).unwrap_or(u64::MAX),
            },
        }
    }

    /// For people.
    fn name(&self, role: Role) -> &str {
        match self {
            Self::Blob(blob, _) => &blob.name,
            Self::Shared(shared, _) => &shared.remote.name,
            Self::Text { .. } if role == Role::Autoexec => "autoexec.ipxe",
            Self::Text { .. } => "boot.ipxe",
        }
    }

    fn media_type(&self) -> &'static str {
        match self {
            Self::Blob(_, media_type) => media_type,
            Self::Shared(..) => "application/octet-stream",
            Self::Text { .. } => "text/plain; charset=utf-8",
        }
    }

    fn body(&self, part: Range<u64>, download: Option<Download>) -> Body {
        match self {
            Self::Blob(blob, _) => Body::Part(Part::new(blob.content.clone(), part, download)),
            Self::Shared(shared, _) => Body::Part(Part::of(shared.clone(), part, download)),
            Self::Text { text, .. } => {
                if let Some(mut download) = download {
                    download.progress(part.end);
                    download.done();
                }
                let bounds = usize::try_from(part.start).ok().zip(usize::try_from(part.end).ok());
                let text = bounds.and_then(|(start, end)| text.get(start..end));
                Body::Text(text.map(Bytes::copy_from_slice).unwrap_or_default())
            }
        }
    }
}

fn script(
    server: &Server,
    request: &Request,
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

pub(super) fn respond(
    server: &Server,
    request: &Request,
    mac: MacAddr,
    role: Role,
    content: &Content,
) -> Response<Body> {
    let file = content.validators();
    let is_get = request.method == Method::GET;
    let (status, part) = match select(&request.headers, is_get, file) {
        Selection::Whole => (StatusCode::OK, 0..file.length),
        Selection::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Selection::NotModified => {
            let mut response = Response::new(Body::Nothing);
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
        Download::new(
            witness,
            mac,
            Protocol::Http,
            role,
            content.name(role).as_bytes(),
            file.length,
        )
    });
    let body = if is_get { content.body(part.clone(), download) } else { Body::Nothing };
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
pub(super) fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::Text(text.to_owned().into()));
    *response.status_mut() = status;
    put(&mut response, header::CONTENT_TYPE, "text/plain; charset=utf-8");
    put(&mut response, header::CONTENT_LENGTH, &text.len().to_string());
    response
}

/// Every value here is made of digits, tags and dates of our own; one that is not a header value
/// is left out.
pub(super) fn put(response: &mut Response<Body>, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
