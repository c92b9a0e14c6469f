//! What a Secret with certificates lacks, and how it is made good. Pure but for the making of keys.
//!
//! The keys of the Secret are those of Coil v2: `ca.crt` (the authority in use first, then earlier ones that
//! API servers are still to trust), `ca.key`, `tls.crt`, `tls.key`.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    ByteString,
    jiff::{SignedDuration, Timestamp},
};
use tokio_rustls::rustls::{pki_types::CertificateDer, sign::CertifiedKey};

use super::{
    issue::{self, Pair},
    pair::{self, Facts, PairError},
};

/// The data of a Secret.
pub(super) type Data = BTreeMap<String, ByteString>;

const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Most authorities that are kept beside the one in use.
const KEPT: usize = 4;

/// How long things last.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// An authority.
    pub authority: SignedDuration,
    /// A server certificate.
    pub server: SignedDuration,
    /// How long an authority is trusted after the next one was made.
    pub overlap: SignedDuration,
}

impl Default for Lifetimes {
    /// Each is replaced when a third of its life is left. An authority has more left then than the longest
    /// life of a server certificate.
    fn default() -> Self {
        let day = SignedDuration::from_hours(24);
        Self { authority: day * 3650, server: day * 365, overlap: day }
    }
}

/// For whom certificates are made.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Common name of the authority.
    pub authority: String,
    /// Names of the server.
    pub names: Vec<String>,
}

/// A Secret that is in order.
#[derive(Debug, Clone)]
pub(super) struct Material {
    /// To be served.
    pub(super) key: Arc<CertifiedKey>,
    /// The authority in use, then those that are still trusted.
    pub(super) authorities: Vec<CertificateDer<'static>>,
    /// The same in PEM form, as API servers get it.
    pub(super) bundle: Vec<u8>,
}

/// What must be done to a Secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Lack {
    /// Everything is made anew.
    #[error("a new certificate authority is needed: {0}")]
    Authority(String),
    /// A certificate by the authority at hand.
    #[error("a new certificate is needed: {0}")]
    Certificate(String),
    /// Earlier authorities are dropped.
    #[error("earlier certificate authorities are not needed any more")]
    Prune,
}

/// Judges a Secret.
pub(super) fn judge(
    data: &Data,
    subject: &Subject,
    now: Timestamp,
    life: &Lifetimes,
) -> Result<Material, Lack> {
    let bundle = field(data, CA_CERTIFICATE);
    let authorities = pair::certificates(bundle);
    let authority = authorities.first().ok_or_else(|| Lack::Authority("ca.crt has no certificate".into()))?;
    let facts = authority_facts(authority, now)?;
    if pair::private_key(field(data, CA_KEY)).is_none() {
        return Err(Lack::Authority("ca.key has no private key".into()));
    }
    let lack = |e: PairError| Lack::Certificate(e.to_string());
    let key = pair::certified(field(data, CERTIFICATE), field(data, KEY)).map_err(lack)?;
    for name in &subject.names {
        pair::verify(&key, authority, name, now).map_err(lack)?;
    }
    let due = key.cert.first().and_then(pair::facts).is_none_or(|leaf| leaf.is_due(now));
    if due {
        return Err(Lack::Certificate("less than a third of its life is left".into()));
    }
    if authorities.len() > 1 && facts.age(now) >= life.overlap {
        return Err(Lack::Prune);
    }
    Ok(Material { key, bundle: bundle.to_vec(), authorities })
}

fn authority_facts(authority: &CertificateDer<'_>, now: Timestamp) -> Result<Facts, Lack> {
    let because = |why: &str| Lack::Authority(format!("ca.crt {why}"));
    let facts = pair::facts(authority).ok_or_else(|| because("cannot be read"))?;
    if !facts.authority {
        return Err(because("is no certificate authority"));
    }
    if !facts.is_good(now) {
        return Err(because("is not valid now"));
    }
    if facts.is_due(now) {
        return Err(because("has less than a third of its life left"));
    }
    Ok(facts)
}

/// Makes a Secret good. `trusted` are authorities that API servers trust already: they stay trusted while
/// servers that were certified by them may still be at work.
pub(super) fn repair(
    data: &Data,
    lack: &Lack,
    trusted: &[CertificateDer<'static>],
    subject: &Subject,
    now: Timestamp,
    life: &Lifetimes,
) -> Result<Data, rcgen::Error> {
    let known = pair::certificates(field(data, CA_CERTIFICATE));
    let mut new = data.clone();
    if let (Lack::Prune, Some(first)) = (lack, known.first()) {
        put(&mut new, CA_CERTIFICATE, bundle_of(std::slice::from_ref(first)));
        return Ok(new);
    }
    // The key may be one that this program cannot sign with, such as an RSA key of Coil v2.
    let at_hand = match (lack, known.first()) {
        (Lack::Certificate(_), Some(first)) => pair::facts(first)
            .and_then(|facts| Some((issue::signing_key(field(data, CA_KEY), &facts).ok()?, first, facts))),
        _ => None,
    };
    let pair = match at_hand {
        Some((key, certificate, facts)) => {
            issue::server((certificate, &facts), key, &subject.names, now, life.server)?
        }
        None => {
            let authority = issue::authority(&subject.authority, now, life.authority)?;
            let (mut bundle, pair) = certify(&authority, subject, now, life)?;
            for old in known.iter().chain(trusted) {
                let good = pair::facts(old)
                    .is_some_and(|f| f.authority && f.name == subject.authority && f.is_good(now));
                if good && !bundle.contains(old) && bundle.len() <= KEPT {
                    bundle.push(old.clone());
                }
            }
            put(&mut new, CA_CERTIFICATE, bundle_of(&bundle));
            put(&mut new, CA_KEY, authority.key);
            pair
        }
    };
    put(&mut new, CERTIFICATE, pair.certificate);
    put(&mut new, KEY, pair.key);
    Ok(new)
}

fn certify(
    authority: &Pair,
    subject: &Subject,
    now: Timestamp,
    life: &Lifetimes,
) -> Result<(Vec<CertificateDer<'static>>, Pair), rcgen::Error> {
    let bundle = pair::certificates(authority.certificate.as_bytes());
    let unreadable = rcgen::Error::CouldNotParseCertificate;
    let certificate = bundle.first().ok_or(unreadable.clone())?;
    let facts = pair::facts(certificate).ok_or(unreadable.clone())?;
    let key = issue::signing_key(authority.key.as_bytes(), &facts).map_err(|_| unreadable)?;
    let pair = issue::server((certificate, &facts), key, &subject.names, now, life.server)?;
    Ok((bundle, pair))
}

/// Certificates as a text in PEM form.
pub(super) fn bundle_of(certificates: &[CertificateDer<'static>]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let one =
        |der: &CertificateDer<'_>| pem::encode_config(&pem::Pem::new("CERTIFICATE", der.to_vec()), config);
    certificates.iter().map(one).collect()
}

fn field<'a>(data: &'a Data, name: &str) -> &'a [u8] {
    data.get(name).map_or(&[], |value| &value.0)
}

fn put(data: &mut Data, name: &str, text: String) {
    data.insert(name.to_owned(), ByteString(text.into_bytes()));
}

#[cfg(test)]
#[path = "secret_tests.rs"]
mod tests;
