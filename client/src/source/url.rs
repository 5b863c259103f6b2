//! Addresses of files, and how one is read relative to another (RFC 3986 section 5). Pure.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _, path::PathBuf};

use http::Uri;

/// Where a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// On a web server.
    Http(Uri),
    /// On this computer (`file:///...`).
    File(PathBuf),
}

/// Whether this is meant as the address of something on a web server, not as a path.
#[must_use]
pub fn is_http(text: &str) -> bool {
    scheme(text).is_some_and(|(scheme, _)| matches!(&*scheme, "http" | "https"))
}

/// An absolute http or https address.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Uri, String> {
    let text = encode(text.trim());
    let fault = |what: &str| format!("\"{text}\" is no address to fetch from: {what}");
    if !is_http(&text) {
        return Err(fault("it begins with neither http:// nor https://"));
    }
    // A fragment is never sent.
    let bare = text.split('#').next().unwrap_or_default();
    let address: Uri = bare.parse().map_err(|error| fault(&format!("{error}")))?;
    match address.authority() {
        None => Err(fault("it names no server")),
        Some(authority) if authority.host().is_empty() => Err(fault("it names no server")),
        Some(authority) if authority.as_str().contains('@') => {
            Err(fault("user names and passwords in it are not supported"))
        }
        Some(_) => Ok(address),
    }
}

/// What `reference` means where `base` is the address of the document that it stands in.
///
/// # Errors
/// What is wrong with it, or a scheme other than http, https and file.
pub fn resolve(base: &Uri, reference: &str) -> Result<Location, String> {
    let reference = encode(reference.trim());
    let reference = reference.split('#').next().unwrap_or_default();
    if let Some((scheme, rest)) = scheme(reference) {
        return match &*scheme {
            "http" | "https" => parse(reference).map(Location::Http),
            "file" => file(rest).map(Location::File),
            other => Err(format!("\"{reference}\": {other} addresses are not supported")),
        };
    }
    let scheme = base.scheme_str().unwrap_or("http");
    if reference.starts_with("//") {
        return parse(&format!("{scheme}:{reference}")).map(Location::Http);
    }
    let authority = base.authority().map_or("", |authority| authority.as_str());
    let (path, query) = match reference.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (reference, None),
    };
    let (path, query) = if path.is_empty() {
        (base.path().to_owned(), query.or(base.query()))
    } else if path.starts_with('/') {
        (without_dots(path), query)
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        (without_dots(&format!("{folder}/{path}")), query)
    };
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    parse(&format!("{scheme}://{authority}{path}{query}")).map(Location::Http)
}

/// The scheme in small letters, and what follows its colon (RFC 3986 section 3.1).
fn scheme(text: &str) -> Option<(String, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let word = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'+' | b'-' | b'.');
    let first = scheme.bytes().next()?;
    (first.is_ascii_alphabetic() && scheme.bytes().all(word))
        .then(|| (scheme.to_ascii_lowercase(), rest))
}

/// RFC 3986 section 5.2.4, for a path that begins with a slash.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        match part {
            "." | ".." => {
                if part == ".." {
                    kept.pop();
                }
                if parts.peek().is_none() {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

/// `///path` or `//localhost/path` (RFC 8089).
fn file(rest: &str) -> Result<PathBuf, String> {
    let path = rest.strip_prefix("//").map_or(rest, |rest| rest.trim_start_matches("localhost"));
    if !path.starts_with('/') {
        return Err(format!("file:{rest} names no file of this computer: write file:///path"));
    }
    let mut octets = Vec::new();
    let mut bytes = path.bytes();
    while let Some(octet) = bytes.next() {
        if octet != b'%' {
            octets.push(octet);
            continue;
        }
        let digits = [bytes.next(), bytes.next()].map(|digit| char::from(digit.unwrap_or(b'?')));
        let [high, low] = digits.map(|digit| digit.to_digit(16));
        match high.zip(low).and_then(|(high, low)| u8::try_from(high * 16 + low).ok()) {
            Some(octet) => octets.push(octet),
            None => return Err(format!("file:{rest}: a % without two hexadecimal digits")),
        }
    }
    Ok(PathBuf::from(OsString::from_vec(octets)))
}

/// What cannot stand in an address is written with `%`, as browsers and Go do.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for octet in text.bytes() {
        match octet {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0..=b' ' | 127.. => {
                encoded.push_str(&format!("%{octet:02X}"));
            }
            other => encoded.push(char::from(other)),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(base: &str, reference: &str) -> String {
        match resolve(&base.parse().unwrap(), reference) {
            Ok(Location::Http(address)) => address.to_string(),
            Ok(Location::File(path)) => path.display().to_string(),
            Err(error) => panic!("{reference}: {error}"),
        }
    }

    #[test]
    fn the_examples_of_rfc_3986_section_5_4() {
        for (reference, target) in [
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g/"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y", "http://a/b/c/g?y"),
            ("#s", "http://a/b/c/d;p?q"),
            ("g#s", "http://a/b/c/g"),
            (";x", "http://a/b/c/;x"),
            ("", "http://a/b/c/d;p?q"),
            (".", "http://a/b/c/"),
            ("..", "http://a/b/"),
            ("../g", "http://a/b/g"),
            ("../../g", "http://a/g"),
            ("../../../g", "http://a/g"),
            ("/./g", "http://a/g"),
            ("/../g", "http://a/g"),
            ("g.", "http://a/b/c/g."),
            ("..g", "http://a/b/c/..g"),
            ("./../g", "http://a/b/g"),
            ("g/./h", "http://a/b/c/g/h"),
            ("g/../h", "http://a/b/c/h"),
            ("g?y/../x", "http://a/b/c/g?y/../x"),
        ] {
            assert_eq!(resolved("http://a/b/c/d;p?q", reference), target, "{reference}");
        }
    }

    #[test]
    fn absolute_addresses_files_and_odd_characters() {
        assert_eq!(resolved("http://a/v1", "https://b.example:8/x"), "https://b.example:8/x");
        assert_eq!(resolved("https://a:1/v1", "//c/x"), "https://c/x");
        assert_eq!(resolved("http://a/v1", "x y\"ü"), "http://a/x%20y%22%C3%BC");
        assert_eq!(resolved("http://a/v1", "file:///tmp/a%20b"), "/tmp/a b");
        assert_eq!(resolved("http://a/v1", "FILE://localhost/k"), "/k");
    }

    #[test]
    fn what_cannot_be_fetched_is_refused() {
        for wrong in
            ["ftp://h/k", "file:k", "file:///%zz", "http://u:p@h/k", "http:///k", "http://"]
        {
            assert!(resolve(&Uri::from_static("http://a/v1"), wrong).is_err(), "{wrong}");
        }
        assert!(is_http("HTTP://h") && is_http("https://h") && !is_http("./http") && !is_http("k"));
        assert!(parse("k").unwrap_err().contains("neither"));
    }
}
