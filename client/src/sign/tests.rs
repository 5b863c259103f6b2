use std::{path::PathBuf, process::Command};

use super::*;
use crate::{
    read::{Content, Piece},
    uki::tests::stub,
};

struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, octets: &[u8]) -> PathBuf {
        fs::write(self.at(name), octets).unwrap();
        self.at(name)
    }

    /// Runs openssl in the directory; `false` when there is none.
    fn openssl(&self, arguments: &str) -> bool {
        let words = arguments.split_whitespace();
        let run = Command::new("openssl").args(words).current_dir(self.0.path()).output();
        let Ok(output) = run else {
            eprintln!("SKIPPED: needs openssl");
            return false;
        };
        assert!(output.status.success(), "{arguments}: {output:?}");
        true
    }

    /// A key and its certificate, made by openssl.
    fn pair(&self, name: &str, kind: &str) -> bool {
        self.openssl(&format!(
            "req -x509 -newkey {kind} -nodes -keyout {name}.key -out {name}.crt -subj /CN={name}"
        ))
    }

    fn open(&self, key: &str, certificate: &str) -> Result<(Signer, Option<String>), Failure> {
        Signer::open(&self.at(key), &self.at(certificate))
    }
}

fn program(octets: &[u8]) -> Blob {
    let content = Content::new(vec![Piece::Memory(octets.to_vec().into())]);
    Blob {
        name: "program".to_owned(),
        length: content.length(),
        content,
        etag: "\"tag\"".to_owned(),
        last_modified: String::new(),
    }
}

fn whole(blob: &Blob) -> Vec<u8> {
    blob.content.read_at(0, usize::try_from(blob.length).unwrap(), Vec::new()).unwrap()
}

/// The hash of the laboratory's stub, worked out by hand from the specification: everything but the
/// checksum at 0x98, and the entry for certificates at 0xe8.
#[test]
fn the_hash_leaves_out_checksum_and_certificate_entry_and_pads_to_eight() {
    for length in [0x610, 0x613] {
        let mut octets = stub(0x8664);
        octets.resize(length, 7);
        let mut hashed = octets.clone();
        hashed.resize(length.next_multiple_of(8), 0);
        hashed.drain(0xe8..0xf0);
        hashed.drain(0x98..0x9c);
        let image = program(&octets);
        let unhashed = uki::unhashed(&octets).unwrap();
        assert_eq!((unhashed.checksum, unhashed.certificates), (0x98, 0xe8));
        let hash = authenticode::hash(&image.content, unhashed).unwrap();
        assert_eq!(hash, digest(&SHA256, &hashed).as_ref());
    }
}

/// A certificate: serial number 9, CN=a, a key of one octet, and what is added behind the key.
fn certificate(extensions: &str) -> String {
    let (rsa, name) = ("300d06092a864886f70d01010b0500", "300c310a300806035504030c0161");
    let time = "170d3235303130313030303030305a";
    let key = "3013300d06092a864886f70d010101050003020007";
    let version = if extensions.is_empty() { "" } else { "a003020102" };
    let signed = format!("{version}020109{rsa}{name}301e{time}{time}{name}{key}{extensions}");
    let signed = format!("30{:02x}{signed}", signed.len() / 2);
    let whole = format!("{signed}{rsa}03020007");
    match whole.len() / 2 {
        length @ ..0x80 => format!("30{length:02x}{whole}"),
        length => format!("3081{length:02x}{whole}"),
    }
}

/// Octet by octet, with a signature that stands for the key's.
fn signature(certificate: &str) -> String {
    let octets = certificate.as_bytes().chunks(2);
    let octets = octets.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap());
    let octets: Vec<u8> = octets.collect();
    let signature = pkcs7::signature(&[0x55; 32], &octets, |message| {
        // SET of two attributes: contentType SPC_INDIRECT_DATA, and messageDigest.
        assert_eq!(message[..4], [0x31, 0x4c, 0x30, 0x19]);
        assert_eq!(message[4..15], [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 3]);
        assert_eq!(
            message[29..42],
            [0x30, 0x2f, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 4]
        );
        Ok(vec![0xee; 4])
    });
    signature.unwrap().iter().map(|octet| format!("{octet:02x}")).collect()
}

#[test]
fn the_signature_block_as_the_specification_has_it() {
    let certificate = certificate("");
    let hex = signature(&certificate);
    let sha256 = "300d06096086480165030402010500";
    let obsolete: String = "<<<Obsolete>>>".bytes().map(|octet| format!("00{octet:02x}")).collect();
    let about = format!("3033060a2b06010401823702010f3025030100a020a21e801c{obsolete}");
    let indirect = format!("{about}3031{sha256}0420{}", "55".repeat(32));
    assert!(hex.contains(&indirect), "{hex}\n{indirect}");
    assert!(hex.starts_with("3082"), "{hex}");
    assert!(hex.contains("06092a864886f70d010702a082"), "{hex}");
    // Certificate, then the signer: version, issuer and serial, SHA-256, attributes.
    assert!(hex.contains(&format!("a07a{certificate}31818b")), "{hex}");
    let issuer = "300c310a300806035504030c0161";
    assert!(hex.contains(&format!("0201013011{issuer}020109{sha256}a04c")), "{hex}");
    assert!(hex.ends_with("300d06092a864886f70d01010105000404eeeeeeee"), "{hex}");
}

/// Some tools write out a default (here: that an extension is not critical), which DER forbids. Written
/// again without it, the certificate's own signature would be wrong.
#[test]
fn a_certificate_that_is_not_quite_der_stays_as_it_is() {
    let certificate = certificate("a3123010300e0603551d0f010100040403020780");
    let hex = signature(&certificate);
    assert!(hex.contains(&format!("a08194{certificate}")), "{hex}");
}

#[tokio::test]
async fn a_signed_program_is_the_program_with_a_table_behind_it_and_sbverify_takes_it() {
    let lab = Lab::new();
    if !lab.pair("own", "rsa:2048") {
        return;
    }
    assert!(lab.pair("other", "rsa:3072"));
    let (signer, warning) = lab.open("own.key", "own.crt").unwrap();
    assert_eq!(warning, None, "openssl makes keys that only the user reads");
    let signer = Arc::new(signer);
    let mut octets = stub(0x8664);
    octets.push(1);
    let signed = signer.signed(program(&octets)).await.unwrap();
    let made = whole(&signed);
    assert_eq!(made[..0xe8], octets[..0xe8]);
    assert_eq!(made[0xf0..octets.len()], octets[0xf0..]);
    assert_eq!(made[octets.len()..0x618], [0; 7]);
    assert_eq!(made[0xe8..0xec], 0x618_u32.to_le_bytes());
    let size = u32::from_le_bytes(made[0xec..0xf0].try_into().unwrap());
    assert_eq!(made.len(), 0x618 + usize::try_from(size).unwrap());
    assert_eq!(made[0x61c..0x620], [0, 2, 2, 0]);
    assert!(signed.length % 8 == 0 && signed.etag.starts_with("\"tag-"), "{}", signed.etag);
    // Known by its tag: the same again, and not read again.
    assert_eq!(whole(&signer.signed(program(&octets)).await.unwrap()), made);
    let refused = signer.signed(signed).await.unwrap_err();
    assert!(refused.contains("signed already"), "{refused}");

    let file = lab.put("signed.efi", &made);
    let verify = |certificate: &str| {
        let certificate = lab.at(certificate);
        Command::new("sbverify").arg("--cert").arg(certificate).arg(&file).output()
    };
    let Ok(output) = verify("own.crt") else {
        eprintln!("SKIPPED: needs sbverify (package sbsigntool)");
        return;
    };
    assert!(output.status.success(), "{output:?}");
    assert!(!verify("other.crt").unwrap().status.success());
    let mut changed = made.clone();
    changed[0x5ff] ^= 1;
    lab.put("signed.efi", &changed);
    assert!(!verify("own.crt").unwrap().status.success());
}

#[test]
fn every_form_of_an_rsa_key_is_taken() {
    let lab = Lab::new();
    if !lab.pair("own", "rsa:2048") {
        return;
    }
    lab.openssl("rsa -in own.key -traditional -out pkcs1.key");
    lab.openssl("x509 -in own.crt -outform DER -out own.der");
    for (key, certificate) in [("own.key", "own.der"), ("pkcs1.key", "own.crt")] {
        assert!(lab.open(key, certificate).is_ok(), "{key} {certificate}");
    }
    let readable = fs::Permissions::from_mode(0o644);
    fs::set_permissions(lab.at("own.key"), readable).unwrap();
    let (signer, warning) = lab.open("own.key", "own.crt").unwrap();
    assert!(warning.unwrap().contains("chmod 600"));
    assert_eq!(format!("{signer:?}").len(), "Signer(0123456789abcdef)".len());
}

#[test]
fn keys_and_certificates_that_will_not_do_are_named_with_the_reason() {
    let lab = Lab::new();
    if !lab.pair("own", "rsa:2048") {
        return;
    }
    lab.pair("other", "rsa:2048");
    lab.pair("small", "rsa:1024");
    lab.pair("curve", "ec -pkeyopt ec_paramgen_curve:P-256");
    lab.openssl("rsa -in own.key -aes256 -passout pass:x -out locked.key");
    lab.openssl("rsa -in own.key -aes256 -traditional -passout pass:x -out locked1.key");
    lab.put("text", b"hello");
    for (key, certificate, file, word) in [
        ("none", "own.crt", "none", "No such file"),
        ("own.key", "none", "none", "No such file"),
        ("text", "own.crt", "text", "no private key"),
        ("own.crt", "own.crt", "own.crt", "no private key"),
        ("own.key", "text", "text", "no certificate"),
        ("own.key", "own.key", "own.key", "no certificate"),
        ("own.key", "other.crt", "other.crt", "another key"),
        ("small.key", "small.crt", "small.key", "2048"),
        ("curve.key", "curve.crt", "curve.key", "not an RSA key"),
        ("locked.key", "own.crt", "locked.key", "encrypted"),
        ("locked1.key", "own.crt", "locked1.key", "encrypted"),
    ] {
        let failure = lab.open(key, certificate).map(drop).unwrap_err();
        assert_eq!(failure.code, 30);
        let message = failure.message;
        assert!(message.contains(word) && message.contains(file), "{key}: {message}");
    }
    // Anything that begins like a certificate.
    let whole = fs::read(lab.at("own.crt")).unwrap();
    let der = CertificateDer::from_pem_slice(&whole).unwrap();
    let key = fs::read(lab.at("own.key")).unwrap();
    for length in 0..der.len() {
        assert!(Signer::new(&key, &der[..length]).is_err(), "{length}");
    }
}

#[test]
fn a_program_that_firmware_would_hash_otherwise_is_refused() {
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut octets = stub(0x8664);
        change(&mut octets);
        uki::unhashed(&octets)
    };
    assert!(with(&|_| {}).is_ok());
    // Octets between headers and the first section.
    assert_eq!(with(&|octets| octets[0x95] = 2), Err(uki::Error::Unsignable));
    // No entry for certificates.
    assert_eq!(with(&|octets| octets[0xc4] = 4), Err(uki::Error::Unsignable));
    assert_eq!(with(&|octets| octets[0] = 0), Err(uki::Error::NotPe));
}
