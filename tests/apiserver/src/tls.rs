//! The server's own CA and certificate, made at start.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A key or certificate could not be made; a bad subject alternative name is the usual reason.
    #[error("making the server certificate for {names:?}")]
    Certificate {
        /// The names that the certificate was to carry.
        names: Vec<String>,
        /// What the certificate library says.
        source: rcgen::Error,
    },
    /// The certificate was refused by the TLS library.
    #[error("setting up TLS with the server certificate")]
    Setup(#[from] rustls::Error),
}

/// A server side of TLS and the CA that vouches for it.
pub(crate) struct Tls {
    pub(crate) ca: String,
    pub(crate) config: Arc<ServerConfig>,
}

/// Names that the certificate always carries.
const NAMES: [&str; 6] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "kubernetes",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

impl Tls {
    /// Makes a CA and a certificate for the usual names and `extra` ones.
    pub(crate) fn new(extra: &[String]) -> Result<Self, TlsError> {
        let names: Vec<String> = NAMES.iter().map(ToString::to_string).chain(extra.iter().cloned()).collect();
        let failed = |source| TlsError::Certificate { names: names.clone(), source };

        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        ca.distinguished_name.push(DnType::CommonName, "coil-apiserver-ca");
        let key = KeyPair::generate().map_err(failed)?;
        let ca = CertifiedIssuer::self_signed(ca, key).map_err(failed)?;

        let mut server = CertificateParams::new(names.clone()).map_err(failed)?;
        server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        server.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = server.signed_by(&key, &ca).map_err(failed)?;

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { ca: ca.pem(), config: Arc::new(config) })
    }
}
