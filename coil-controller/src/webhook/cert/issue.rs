//! Making certificates.

use std::time::SystemTime;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::pair::{BACKDATE, Facts};

/// Organization in the subject of the authority, as in Coil v2.
const ORGANIZATION: &str = "coil";

/// A certificate and its key in PEM form.
#[derive(Clone)]
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// Makes a certificate authority.
pub(super) fn authority(name: &str, now: Timestamp, lifetime: SignedDuration) -> Result<Pair, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
    params.not_before = SystemTime::from(now - BACKDATE).into();
    params.not_after = SystemTime::from(now + lifetime).into();
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    Ok(Pair { certificate: issuer.pem(), key: issuer.key().serialize_pem() })
}

/// The key of an authority, when it can sign here and belongs to the authority's certificate.
pub(super) fn signing_key(pem: &[u8], authority: &Facts) -> Result<KeyPair, String> {
    let text = std::str::from_utf8(pem).map_err(|e| e.to_string())?;
    let key = KeyPair::from_pem(text).map_err(|e| e.to_string())?;
    let public = rcgen::PublicKeyData::subject_public_key_info(&key);
    if public != authority.public_key { Err("it is not the key of ca.crt".to_owned()) } else { Ok(key) }
}

/// Makes a server certificate that is good for the names, for as long as its authority at most.
pub(super) fn server(
    authority: (&CertificateDer<'_>, &Facts),
    key: KeyPair,
    names: &[String],
    now: Timestamp,
    lifetime: SignedDuration,
) -> Result<Pair, rcgen::Error> {
    let (certificate, facts) = authority;
    let issuer = Issuer::from_ca_cert_der(certificate, key)?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(name) = names.first() {
        params.distinguished_name.push(DnType::CommonName, name.as_str());
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.not_before = SystemTime::from((now - BACKDATE).max(facts.from)).into();
    params.not_after = SystemTime::from((now + lifetime).min(facts.until)).into();
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}
