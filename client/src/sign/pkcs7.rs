//! The signature of an EFI program: PKCS #7 SignedData over the hash of its image (RFC 2315, and
//! "Windows Authenticode Portable Executable Signature Format", Microsoft, 2008).
//!
//! The structures and their encoding are those of the crates cms and der; what Authenticode adds is here.
//! Pure. Guarantees: the certificate stands in it octet for octet as it was read.

use cms::{
    cert::{
        IssuerAndSerialNumber,
        x509::{Certificate, attr::Attribute, spki::AlgorithmIdentifierOwned},
    },
    content_info::{CmsVersion, ContentInfo},
    signed_data::{
        DigestAlgorithmIdentifiers, EncapsulatedContentInfo, SignerIdentifier, SignerInfo,
        SignerInfos,
    },
};
use der::{
    Any, Decode as _, Encode as _, Sequence, Tag,
    asn1::{OctetString, SetOfVec},
    oid::{
        ObjectIdentifier,
        db::{
            rfc5911::{ID_CONTENT_TYPE, ID_MESSAGE_DIGEST, ID_SIGNED_DATA},
            rfc5912::{ID_SHA_256, RSA_ENCRYPTION},
        },
    },
};
use ring::digest::{SHA256, digest};

/// SPC_INDIRECT_DATA: what is signed is the hash of something else.
const INDIRECT_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.4");
/// That something, as DER writes it: SPC_PE_IMAGE_DATA (1.3.6.1.4.1.311.2.1.15) with no flags, and a
/// file name in UTF-16 that has had no meaning since long.
const PE_IMAGE_DATA: &[u8] = b"\x30\x33\x06\x0a\x2b\x06\x01\x04\x01\x82\x37\x02\x01\x0f\
    \x30\x25\x03\x01\x00\xa0\x20\xa2\x1e\x80\x1c\0<\0<\0<\0O\0b\0s\0o\0l\0e\0t\0e\0>\0>\0>";

/// RFC 2315 section 9.1, with the certificate's own octets: decoded and written again, it could become
/// another one.
#[derive(Sequence)]
struct SignedData {
    version: CmsVersion,
    digest_algorithms: DigestAlgorithmIdentifiers,
    content: EncapsulatedContentInfo,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT")]
    certificates: SetOfVec<Any>,
    signers: SignerInfos,
}

/// Why there is no signature.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Never of a certificate that was read before.
    #[error("the certificate cannot be read: {0}")]
    Certificate(#[from] der::Error),
    /// The library does not say why.
    #[error("the key does not sign")]
    Key,
}

/// The signature for an image of this hash, by the holder of `certificate` (DER). `sign` makes an RSA signature (PKCS #1 v1.5, SHA-256).
pub(super) fn signature(
    hash: &[u8; 32],
    certificate: &[u8],
    sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, Error>,
) -> Result<Vec<u8>, Error> {
    let Certificate { tbs_certificate: signed, .. } = Certificate::from_der(certificate)?;
    let algorithm = |oid| AlgorithmIdentifierOwned { oid, parameters: Some(Any::null()) };
    let attribute =
        |oid, value| Ok::<_, der::Error>(Attribute { oid, values: vec![value].try_into()? });
    let digest_info =
        [algorithm(ID_SHA_256).to_der()?, OctetString::new(hash.as_slice())?.to_der()?].concat();
    let digest_info = Any::new(Tag::Sequence, digest_info)?.to_der()?;
    let content = [PE_IMAGE_DATA, &digest_info].concat();
    let digested = OctetString::new(digest(&SHA256, &content).as_ref())?;
    let attributes = SetOfVec::try_from(vec![
        attribute(ID_CONTENT_TYPE, Any::encode_from(&INDIRECT_DATA)?)?,
        attribute(ID_MESSAGE_DIGEST, Any::encode_from(&digested)?)?,
    ])?;
    let signer = SignerInfo {
        version: CmsVersion::V1,
        sid: SignerIdentifier::IssuerAndSerialNumber(IssuerAndSerialNumber {
            issuer: signed.issuer,
            serial_number: signed.serial_number,
        }),
        digest_alg: algorithm(ID_SHA_256),
        signature: OctetString::new(sign(&attributes.to_der()?)?)?,
        signed_attrs: Some(attributes),
        signature_algorithm: algorithm(RSA_ENCRYPTION),
        unsigned_attrs: None,
    };
    let data = SignedData {
        version: CmsVersion::V1,
        digest_algorithms: vec![algorithm(ID_SHA_256)].try_into()?,
        content: EncapsulatedContentInfo {
            econtent_type: INDIRECT_DATA,
            econtent: Some(Any::new(Tag::Sequence, content)?),
        },
        certificates: vec![Any::from_der(certificate)?].try_into()?,
        signers: vec![signer].try_into()?,
    };
    let content = Any::encode_from(&data)?;
    Ok(ContentInfo { content_type: ID_SIGNED_DATA, content }.to_der()?)
}
