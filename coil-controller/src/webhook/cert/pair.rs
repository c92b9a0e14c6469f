//! Certificates and keys as they stand in files and Secrets.

use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio_rustls::rustls::{
    self, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What is wrong with a certificate or a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// No certificate in PEM form.
    #[error("no certificate in PEM form in {0}")]
    NoCertificate(&'static str),
    /// No key in PEM form.
    #[error("no private key in PEM form in {0}")]
    NoKey(&'static str),
    /// The TLS library refuses them.
    #[error("certificate and key cannot be used: {0}")]
    Unusable(String),
    /// The certificate is not in order now, or not for this name.
    #[error("the certificate is not good for {name}: {why}")]
    NotGood {
        /// The name.
        name: String,
        /// What the TLS library says.
        why: String,
    },
}

/// The certificates of a text in PEM form; what else is in it is skipped, damage ends it.
pub(super) fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).map_while(Result::ok).collect()
}

/// The private key of a text in PEM form.
pub(super) fn private_key(pem: &[u8]) -> Option<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).ok()
}

/// A certificate with its key, ready to be served.
///
/// # Errors
/// When one of them is missing or damaged, or the key belongs to another certificate.
pub fn certified(chain: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, PairError> {
    let chain = certificates(chain);
    if chain.is_empty() {
        return Err(PairError::NoCertificate("tls.crt"));
    }
    let key = private_key(key).ok_or(PairError::NoKey("tls.key"))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map(Arc::new)
        .map_err(|e| PairError::Unusable(e.to_string()))
}

/// Whether an API server that trusts `authority` takes the certificate for the name at that time.
pub(super) fn verify(
    key: &CertifiedKey,
    authority: &CertificateDer<'static>,
    name: &str,
    now: Timestamp,
) -> Result<(), PairError> {
    let bad = |why: String| PairError::NotGood { name: name.to_owned(), why };
    let (leaf, chain) = key.cert.split_first().ok_or(PairError::NoCertificate("tls.crt"))?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(|e| bad(e.to_string()))?;
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| bad(e.to_string()))?;
    let server = ServerName::try_from(name.to_owned()).map_err(|e| bad(e.to_string()))?;
    let since = std::time::Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
    match verifier.verify_server_cert(leaf, chain, &server, &[], UnixTime::since_unix_epoch(since)) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InvalidCertificate(why)) => Err(bad(why.to_string())),
        Err(other) => Err(bad(other.to_string())),
    }
}

/// The facts of a certificate that decide when it is replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// From when on it is good.
    pub(super) from: Timestamp,
    /// Until when.
    pub(super) until: Timestamp,
    /// Whether it may sign others.
    pub(super) authority: bool,
    /// Common name of its subject.
    pub(super) name: String,
    /// Its public key, in DER form.
    pub(super) public_key: Vec<u8>,
}

/// Reads the facts of a certificate.
pub(super) fn facts(certificate: &CertificateDer<'_>) -> Option<Facts> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let validity = parsed.validity();
    Some(Facts {
        from: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
        until: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
        authority: parsed.is_ca(),
        name: parsed
            .subject()
            .iter_common_name()
            .next()
            .and_then(|n| n.as_str().ok())
            .unwrap_or_default()
            .to_owned(),
        public_key: parsed.public_key().raw.to_vec(),
    })
}

impl Facts {
    /// Whether less than a third of the lifetime is left: time to replace it.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        let life = self.until.duration_since(self.from);
        self.until.duration_since(now) < life / 3
    }

    /// Whether it is good at this time.
    pub(super) fn is_good(&self, now: Timestamp) -> bool {
        self.from <= now && now < self.until
    }

    /// How long ago it was made; certificates made here begin [`BACKDATE`] earlier.
    pub(super) fn age(&self, now: Timestamp) -> SignedDuration {
        now.duration_since(self.from) - BACKDATE
    }
}

/// Certificates made here are good from before they are made: clocks of machines differ.
pub(super) const BACKDATE: SignedDuration = SignedDuration::from_hours(1);
