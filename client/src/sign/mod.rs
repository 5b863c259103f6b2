//! Signs EFI programs with the user's own key, for machines with Secure Boot that know its
//! certificate.
//!
//! Guarantees: key and certificate belong together; the key stays in this process and shows in no
//! message; a program is read once for each of its signatures, and never written. Trusts the files
//! that the user names.

mod authenticode;
mod pkcs7;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use cms::cert::x509::Certificate;
use der::Decode as _;
use ring::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    rsa::KeyPair,
    signature::{KeyPair as _, RSA_PKCS1_SHA256},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::{
    exit::{Code, Failure},
    image::Blob,
    source::read_head,
    uki,
};

/// Octets of a key or certificate: those of 4,096 bits have less than 4 KiB as text.
const FILE_LIMIT: u64 = 64 * 1024;
/// What every certificate in DER begins with: the tag of a SEQUENCE.
const SEQUENCE: u8 = 0x30;
/// Octets at the beginning of a program that hold its headers.
const HEAD: u64 = 4096;
/// Signatures that are kept, of some 2 KiB each: one for all machines, or one for each whose command
/// line names its own addresses.
const KEPT: usize = 1024;

/// A key with its certificate.
pub struct Signer {
    key: KeyPair,
    certificate: Vec<u8>,
    /// Of the certificate: what it is called in the program's tag.
    fingerprint: String,
    /// Signatures by the program's tag.
    kept: Mutex<BTreeMap<String, Vec<u8>>>,
    /// One program at a time is read for a signature: more would only queue at the disk.
    turn: Semaphore,
}

/// Nothing of the key.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.fingerprint)
    }
}

impl Signer {
    /// Reads both files: PEM, or DER for the certificate. Also says what is amiss with the key file
    /// though it will do.
    ///
    /// # Errors
    /// [`Code::Source`]: one cannot be read or used, or they do not belong together.
    pub fn open(key: &Path, certificate: &Path) -> Result<(Self, Option<String>), Failure> {
        let (octets, mode) = read(key, "key")?;
        let signer = Self::new(&octets, &read(certificate, "certificate")?.0).map_err(|fault| {
            let (path, text) = match fault {
                Fault::Key(text) => (key, text),
                Fault::Certificate(text) => (certificate, text),
            };
            Failure::new(Code::Source, format!("{}: {text}", path.display()))
        })?;
        let warning = (mode & 0o077 != 0).then(|| {
            let path = key.display();
            format!(
                "Other users of this computer can read the signing key: chmod 600 {path} keeps it \
                 to you."
            )
        });
        Ok((signer, warning))
    }

    fn new(key: &[u8], certificate: &[u8]) -> Result<Self, Fault> {
        let key = key_pair(key)?;
        let certificate = if certificate.first() == Some(&SEQUENCE) {
            certificate.to_vec()
        } else {
            let found = CertificateDer::from_pem_slice(certificate);
            found.map_err(|_| Fault::Certificate("no certificate (PEM or DER) in it"))?.to_vec()
        };
        let parsed = Certificate::from_der(&certificate);
        let parsed = parsed.map_err(|_| Fault::Certificate("not a certificate"))?.tbs_certificate;
        let certified = parsed.subject_public_key_info.subject_public_key;
        if certified.as_bytes() != Some(key.public_key().as_ref()) {
            return Err(Fault::Certificate(
                "it belongs to another key than the one that was named",
            ));
        }
        let fingerprint = digest(&SHA256, &certificate);
        let fingerprint = fingerprint.as_ref().iter().take(8).map(|octet| format!("{octet:02x}"));
        Ok(Self {
            fingerprint: fingerprint.collect(),
            key,
            certificate,
            kept: Mutex::default(),
            turn: Semaphore::new(1),
        })
    }

    /// The program with a signature. Reads all of it, unless that was done before for a program with
    /// the same tag.
    ///
    /// # Errors
    /// In words: it cannot be read, is signed already, or is no program that can be signed.
    pub async fn signed(self: &Arc<Self>, program: Blob) -> Result<Blob, String> {
        // Never closed.
        let _turn = self.turn.acquire().await;
        let signer = Arc::clone(self);
        let name = program.name.clone();
        let work = spawn_blocking(move || signer.signed_now(program));
        let fault = |what: String| format!("{name} cannot be signed: {what}");
        work.await.map_err(|error| fault(error.to_string()))?.map_err(fault)
    }

    fn signed_now(&self, program: Blob) -> Result<Blob, String> {
        let unreadable = |error: io::Error| error.to_string();
        let head = read_head(&program, HEAD).map_err(unreadable)?;
        let unhashed = uki::unhashed(&head).map_err(|error| error.to_string())?;
        if unhashed.signed {
            return Err("it is signed already; serve it without --sign-key".to_owned());
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kept.get(&program.etag).cloned();
        drop(kept);
        let signature = match known {
            Some(signature) => signature,
            None => {
                let hash = authenticode::hash(&program.content, unhashed).map_err(unreadable)?;
                let made = self.signature(&hash).map_err(|error| error.to_string())?;
                let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() >= KEPT {
                    kept.pop_first();
                }
                kept.insert(program.etag.clone(), made.clone());
                made
            }
        };
        let content = authenticode::append(&program.content, head, unhashed, &signature)
            .ok_or_else(|| uki::Error::TooLarge.to_string())?
            .map_err(unreadable)?;
        let etag = format!("\"{}-{}\"", program.etag.trim_matches('"'), self.fingerprint);
        Ok(Blob { length: content.length(), content, etag, ..program })
    }

    fn signature(&self, hash: &[u8; 32]) -> Result<Vec<u8>, pkcs7::Error> {
        pkcs7::signature(hash, &self.certificate, |message| {
            let mut signature = vec![0; self.key.public().modulus_len()];
            let random = SystemRandom::new();
            let signed = self.key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature);
            signed.map(|()| signature).map_err(|_| pkcs7::Error::Key)
        })
    }
}

/// What is wrong with one of the two files.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    Key(&'static str),
    Certificate(&'static str),
}

fn read(path: &Path, role: &str) -> Result<(Vec<u8>, u32), Failure> {
    let fault = |error: &dyn fmt::Display| {
        Failure::new(Code::Source, format!("the {role} {}: {error}", path.display()))
    };
    let facts = fs::metadata(path).map_err(|error| fault(&error))?;
    if !facts.is_file() || facts.len() > FILE_LIMIT {
        return Err(fault(&"not a key or certificate"));
    }
    let octets = fs::read(path).map_err(|error| fault(&error))?;
    Ok((octets, facts.permissions().mode()))
}

fn key_pair(pem: &[u8]) -> Result<KeyPair, Fault> {
    if pem.windows(9).any(|word| word == b"ENCRYPTED") {
        return Err(Fault::Key(
            "the key is encrypted, and nobody is asked for its password: make a copy without one \
             that only you can read (openssl rsa -in KEY -out COPY)",
        ));
    }
    let key = match PrivateKeyDer::from_pem_slice(pem) {
        Ok(PrivateKeyDer::Pkcs8(key)) => KeyPair::from_pkcs8(key.secret_pkcs8_der()),
        Ok(PrivateKeyDer::Pkcs1(key)) => KeyPair::from_der(key.secret_pkcs1_der()),
        Ok(_) => return Err(Fault::Key("not an RSA key, and firmware takes no other")),
        Err(_) => return Err(Fault::Key("no private key (PEM) in it")),
    };
    key.map_err(|_| Fault::Key("not an RSA key of 2048 to 4096 bits, and firmware takes no other"))
}

#[cfg(test)]
mod tests;
