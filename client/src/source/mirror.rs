//! Web servers that have copies of what is served (`--mirror`): are they the same files?
//!
//! Guarantees: a mirror whose file has another length, or differs in one of the parts that are
//! compared, is not used; where a server knows no ranges (RFC 9110 section 14.2) the whole file is
//! compared. The parts are spread over the whole file, its two ends included: what was built anew or
//! copied in part differs there. Trusts the mirror beyond that, and to keep its files as they are:
//! what machines then fetch from it, nobody here sees.

use futures_util::future::try_join_all;
use http::Uri;

use super::url;
use crate::{
    exit::{Code, Failure},
    fetch::{Fetcher, Part},
    image::{Blob, Generation, Payload},
};

/// Parts of a file that are compared.
const PARTS: u64 = 16;
/// Octets of each.
const PART: u64 = 16 * 1024;

/// The mirrors' addresses, without a slash at the end, once each of them has what `generation` has.
///
/// # Errors
/// An address that is none; nothing that could be mirrored; or a mirror that has something else.
pub async fn check(generation: &Generation, mirrors: &[String]) -> Result<Vec<String>, Failure> {
    if mirrors.is_empty() {
        return Ok(Vec::new());
    }
    let files = files(generation)?;
    let bases = mirrors.iter().map(|text| base(text)).collect::<Result<Vec<_>, _>>()?;
    let fetcher = Fetcher::new();
    try_join_all(bases.iter().map(async |base| {
        for blob in &files {
            same(&fetcher, base, blob).await?;
        }
        Ok::<_, Failure>(())
    }))
    .await?;
    Ok(bases)
}

/// What a mirror must have: files of different names.
fn files(generation: &Generation) -> Result<Vec<&Blob>, Failure> {
    let refusal = |text: String| Err(Failure::new(Code::Usage, format!("--mirror: {text}")));
    let Some(kernel) = &generation.kernel else {
        return refusal("an iPXE script says itself where machines fetch from".to_owned());
    };
    let mut files: Vec<&Blob> = Vec::new();
    for payload in std::iter::once(kernel).chain(&generation.initrds) {
        let Payload::Local(blob) = payload else {
            return refusal(format!(
                "{} lies on a web server already (--direct lets machines fetch it from there)",
                payload.name()
            ));
        };
        if files.iter().any(|other| other.name == blob.name) {
            return refusal(format!(
                "two files are called {}, and on a mirror they are known by their names",
                blob.name
            ));
        }
        files.push(blob);
    }
    Ok(files)
}

/// A folder's address, to which names are added.
fn base(text: &str) -> Result<String, Failure> {
    let fault = |what: &str| Failure::new(Code::Usage, format!("--mirror: {what}"));
    let address = url::parse(text).map_err(|error| fault(&error))?;
    if address.query().is_some() {
        return Err(fault(&format!(
            "{address} has a query, and is to be the folder in which the files are"
        )));
    }
    Ok(address.to_string().trim_end_matches('/').to_owned())
}

/// The address of a file on a mirror: a name is one part of a path (RFC 3986 section 3.3).
#[must_use]
pub fn address(base: &str, name: &str) -> String {
    let mut address = format!("{base}/");
    for octet in name.bytes() {
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            address.push(char::from(octet));
        } else {
            address.push_str(&format!("%{octet:02X}"));
        }
    }
    address
}

/// Whether the mirror's file is ours, as far as it is looked at.
async fn same(fetcher: &Fetcher, base: &str, blob: &Blob) -> Result<(), Failure> {
    let address = address(base, &blob.name);
    let refusal = |text: String| {
        Failure::new(Code::Source, format!("the mirror's {address} {text}"))
            .advise(format!("put the files there as they are here, {} among them", blob.name))
            .advise("or leave this mirror out")
    };
    let uri: Uri = address.parse().map_err(|error| refusal(format!("is no address: {error}")))?;
    let size = PART.min(blob.length);
    let mut last = None;
    for number in 0..PARTS {
        // Rounded down, and the last one ends with the file.
        let start = (blob.length - size) / (PARTS - 1) * number;
        let start = if number == PARTS - 1 { blob.length - size } else { start };
        if last == Some(start) {
            continue;
        }
        last = Some(start);
        let asked = fetcher.part(&uri, start, size).await;
        let mut part = asked.map_err(|error| refusal(format!("cannot be fetched: {error}")))?;
        let whole = part.is_whole();
        if let Some(length) = part.facts.length.filter(|length| *length != blob.length) {
            let (name, ours) = (&blob.name, blob.length);
            return Err(refusal(format!("has {length} octets, and {name} here has {ours}")));
        }
        let compared = compare(&mut part, blob).await.map_err(&refusal)?;
        if compared != if whole { blob.length } else { size } {
            return Err(refusal(format!("ends at octet {}", part.start)));
        }
        if whole {
            break;
        }
    }
    Ok(())
}

/// How many octets came, all of them ours.
async fn compare(part: &mut Part, blob: &Blob) -> Result<u64, String> {
    let mut compared = 0;
    while let Some(octets) =
        part.next().await.map_err(|error| format!("cannot be fetched: {error}"))?
    {
        let (start, count) = (part.start, octets.len());
        let end = start.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        if end > blob.length {
            return Err(format!("is longer than {} here", blob.name));
        }
        let content = blob.content.clone();
        let ours = tokio::task::spawn_blocking(move || content.read_at(start, count, Vec::new()));
        let ours = ours.await.map_err(|error| error.to_string())?;
        match ours {
            Ok(ours) if ours == octets => {}
            Ok(_) => {
                return Err(format!(
                    "is another file than {} here: they differ after octet {start}",
                    blob.name
                ));
            }
            Err(error) => return Err(format!("cannot be compared with {}: {error}", blob.name)),
        }
        part.start = end;
        compared += end - start;
    }
    Ok(compared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_folders_and_names_one_part_of_a_path() {
        assert_eq!(base("http://m/nixos/").unwrap(), "http://m/nixos");
        assert_eq!(base("HTTPS://m:8").unwrap(), "https://m:8");
        assert_eq!(base("http://m/${x} || #y").unwrap(), "http://m/$%7Bx%7D%20%7C%7C%20");
        for wrong in ["m/nixos", "ftp://m", "http://m/?key=1", "http://u:p@m/"] {
            assert!(base(wrong).is_err(), "{wrong}");
        }
        assert_eq!(address("http://m", "bzImage-6.1"), "http://m/bzImage-6.1");
        assert_eq!(address("http://m/x", "a b/#?%${ü"), "http://m/x/a%20b%2F%23%3F%25%24%7B%C3%BC");
    }
}
