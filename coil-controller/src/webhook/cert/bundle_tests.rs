use std::sync::Arc;

use tokio_rustls::rustls::sign::CertifiedKey;

use super::*;
use crate::webhook::cert::{
    issue,
    secret::{self, Lifetimes, Subject},
};

const NAME: &str = "coil-ipam-webhook-ca";
const KEEP: SignedDuration = SignedDuration::from_secs(300);

fn at(second: i64) -> Timestamp {
    "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(second)
}

fn authority(name: &str) -> CertificateDer<'static> {
    let pem = issue::authority(name, at(0), SignedDuration::from_hours(1000)).unwrap().certificate;
    pair::certificates(pem.as_bytes()).remove(0)
}

fn key() -> Arc<CertifiedKey> {
    let subject = Subject { authority: NAME.into(), names: vec!["x.y.svc".into()] };
    let (data, life) = (secret::Data::new(), Lifetimes::default());
    let lack = secret::judge(&data, &subject, at(0), &life).unwrap_err();
    let data = secret::repair(&data, &lack, &[], &subject, at(0), &life).unwrap();
    secret::judge(&data, &subject, at(0), &life).unwrap().key
}

fn material(authorities: &[&CertificateDer<'static>]) -> Material {
    let authorities: Vec<_> = authorities.iter().map(|a| (*a).clone()).collect();
    Material { key: key(), bundle: bundle_of(&authorities).into_bytes(), authorities }
}

/// What one configuration says after each round of a replica.
struct Told(Vec<CertificateDer<'static>>);

impl Told {
    fn round(&mut self, keeper: &Keeper, material: &Material, now: Timestamp) -> Vec<u8> {
        let bundle = keeper.bundle(material, &self.0, now);
        self.0 = pair::certificates(&bundle);
        keeper.told(now);
        bundle
    }
}

#[test]
fn an_authority_that_the_secret_lost_is_kept_until_every_replica_has_changed() {
    let (old, new) = (authority(NAME), authority(NAME));
    let mut told = Told(vec![old.clone()]);
    let (mut first, second) = (Keeper::new(NAME.into(), KEEP), Keeper::new(NAME.into(), KEEP));
    first.serves(Some(&old));
    let material = material(&[&new]);
    // The second serves nothing yet, and does not take away what the first needs.
    for now in [0, 10, 299] {
        for keeper in [&first, &second] {
            let bundle = told.round(keeper, &material, at(now));
            assert_eq!(told.0, [new.clone(), old.clone()], "{now}");
            assert!(bundle.starts_with(&material.bundle));
        }
    }
    first.serves(Some(&new));
    told.round(&second, &material, at(301));
    assert_eq!(told.0, std::slice::from_ref(&new));
    // What the Secret says, to the byte.
    assert_eq!(told.round(&first, &material, at(302)), material.bundle);
}

#[test]
fn what_is_served_is_trusted_whatever_its_name_and_replicas_do_not_write_against_each_other() {
    let (old, new) = (authority("by somebody else"), authority(NAME));
    let (mut late, other) = (Keeper::new(NAME.into(), KEEP), Keeper::new(NAME.into(), KEEP));
    late.serves(Some(&old));
    let material = material(&[&new]);
    let mut told = Told(Vec::new());
    told.round(&late, &material, at(1000));
    assert_eq!(told.0, [new.clone(), old.clone()]);
    told.round(&other, &material, at(1000));
    assert_eq!(told.0, std::slice::from_ref(&new), "a stranger's is not kept for others");

    let old = authority(NAME);
    late.serves(Some(&old));
    let mut writes = 0;
    for now in 0..600 {
        for keeper in [&late, &other] {
            let before = told.0.clone();
            told.round(keeper, &material, at(now));
            writes += usize::from(told.0 != before);
        }
    }
    assert!(told.0.contains(&old) && writes <= 5, "{writes}");
}

#[test]
fn rubbish_goes_and_there_is_an_end() {
    let new = authority(NAME);
    let material = material(&[&new]);
    let keeper = Keeper::new(NAME.into(), KEEP);
    let mut told =
        Told(vec![CertificateDer::from(b"rubbish".to_vec()), material.key.cert[0].clone(), new.clone()]);
    assert_eq!(told.round(&keeper, &material, at(0)), material.bundle);
    told.0 = std::iter::repeat_with(|| authority(NAME)).take(KEPT + 3).collect();
    told.round(&keeper, &material, at(0));
    assert_eq!(told.0.len(), 1 + KEPT);
    told.round(&keeper, &material, at(0) + SignedDuration::from_hours(1001));
    assert_eq!(told.0, [new], "expired");
}
