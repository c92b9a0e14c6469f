use super::*;

const NAME: &str = "coilv2-ipam-webhook-service.kube-system.svc";

fn subject() -> Subject {
    Subject { authority: "coil-ipam-ca".into(), names: vec![NAME.into(), format!("{NAME}.cluster.local")] }
}

fn day(n: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + n * 86_400).unwrap()
}

fn judged(data: &Data, now: Timestamp) -> Result<Material, Lack> {
    judge(data, &subject(), now, &Lifetimes::default())
}

/// One repair, as a replica does it.
fn repaired(data: &Data, now: Timestamp, trusted: &[CertificateDer<'static>]) -> Data {
    let lack = judged(data, now).unwrap_err();
    repair(data, &lack, trusted, &subject(), now, &Lifetimes::default()).unwrap()
}

fn fresh() -> (Data, Material) {
    let data = repaired(&Data::new(), day(0), &[]);
    let material = judged(&data, day(0)).unwrap();
    (data, material)
}

#[track_caller]
fn needs_authority(data: &Data, now: Timestamp, says: &str) {
    match judged(data, now) {
        Err(Lack::Authority(why)) => assert!(why.contains(says), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn needs_certificate(data: &Data, now: Timestamp, says: &str) {
    match judged(data, now) {
        Err(Lack::Certificate(why)) => assert!(why.contains(says), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_empty_secret_is_filled_with_what_api_servers_take() {
    needs_authority(&Data::new(), day(0), "ca.crt has no certificate");
    let (data, material) = fresh();
    assert_eq!(data.keys().collect::<Vec<_>>(), ["ca.crt", "ca.key", "tls.crt", "tls.key"]);
    assert_eq!(material.authorities.len(), 1);
    assert_eq!(material.bundle, data["ca.crt"].0);
    let authority = pair::facts(&material.authorities[0]).unwrap();
    assert_eq!((authority.name.as_str(), authority.authority), ("coil-ipam-ca", true));
    let leaf = pair::facts(&material.key.cert[0]).unwrap();
    assert!(!leaf.authority);
    assert!(leaf.until < authority.until);
    for name in subject().names {
        pair::verify(&material.key, &material.authorities[0], &name, day(0)).unwrap();
    }
    assert!(pair::verify(&material.key, &material.authorities[0], "other.svc", day(0)).is_err());
    let (_, stranger) = fresh();
    assert!(pair::verify(&material.key, &stranger.authorities[0], NAME, day(0)).is_err());
}

#[test]
fn a_certificate_is_renewed_long_before_its_end_by_the_same_authority() {
    let (data, old) = fresh();
    assert!(judged(&data, day(243)).is_ok());
    needs_certificate(&data, day(244), "third");
    let new = judged(&repaired(&data, day(244), &[]), day(244)).unwrap();
    assert_eq!(new.authorities, old.authorities);
    assert_ne!(new.key.cert, old.key.cert);
    needs_certificate(&data, day(366), "expired");
    let late = judged(&repaired(&data, day(366), &[]), day(366)).unwrap();
    assert_eq!(late.authorities, old.authorities, "a long absence changes nothing of that");
}

#[test]
fn an_authority_is_renewed_long_before_its_end_and_the_old_one_stays_trusted_for_a_day() {
    let (data, old) = fresh();
    let time = day(2434);
    needs_authority(&data, time, "third");
    let renewed = repaired(&data, time, &[]);
    let both = judged(&renewed, time).unwrap();
    assert_eq!(both.authorities.len(), 2);
    assert_eq!(both.authorities[1], old.authorities[0]);
    assert_eq!(pair::certificates(&both.bundle), both.authorities);
    pair::verify(&both.key, &both.authorities[0], NAME, time).unwrap();
    assert!(judged(&renewed, time + SignedDuration::from_hours(23)).is_ok());
    let later = time + SignedDuration::from_hours(25);
    assert_eq!(judged(&renewed, later).unwrap_err(), Lack::Prune);
    let pruned = judged(&repaired(&renewed, later, &[]), later).unwrap();
    assert_eq!(pruned.authorities, both.authorities[..1]);
    assert_eq!(pruned.key.cert, both.key.cert, "nothing else changes");
}

#[test]
fn damage_is_repaired_with_the_least_change() {
    let (data, old) = fresh();
    let (other, _) = fresh();
    let with = |field: &str, value: &[u8]| {
        let mut data = data.clone();
        data.insert(field.to_owned(), ByteString(value.to_vec()));
        data
    };
    let without = |field: &str| {
        let mut data = data.clone();
        data.remove(field);
        data
    };
    for (damaged, says) in [
        (without("tls.crt"), "tls.crt"),
        (without("tls.key"), "tls.key"),
        (with("tls.crt", b"rubbish"), "tls.crt"),
        (with("tls.key", b"rubbish"), "tls.key"),
        (with("tls.crt", &data["tls.crt"].0[..200]), "tls.crt"),
        (with("tls.key", &other["tls.key"].0), "cannot be used"),
    ] {
        needs_certificate(&damaged, day(1), says);
        let new = judged(&repaired(&damaged, day(1), &[]), day(1)).unwrap();
        assert_eq!(new.authorities, old.authorities);
    }
    // Of another authority.
    let mut foreign = other.clone();
    foreign.insert("ca.crt".to_owned(), data["ca.crt"].clone());
    foreign.insert("ca.key".to_owned(), data["ca.key"].clone());
    needs_certificate(&foreign, day(1), NAME);
    for (damaged, says) in [
        (without("ca.crt"), "ca.crt"),
        (without("ca.key"), "ca.key"),
        (with("ca.key", b"rubbish"), "ca.key"),
        (with("ca.crt", b"\xff\xff"), "ca.crt"),
        (with("ca.crt", &data["tls.crt"].0), "no certificate authority"),
    ] {
        needs_authority(&damaged, day(1), says);
        let new = judged(&repaired(&damaged, day(1), &old.authorities), day(1)).unwrap();
        assert_ne!(new.authorities[0], old.authorities[0]);
        assert_eq!(new.authorities[1..], old.authorities, "{says}: servers of the old one are still trusted");
    }
}

#[test]
fn a_key_that_cannot_sign_is_found_when_it_is_needed() {
    let (data, old) = fresh();
    let (other, _) = fresh();
    let mut wrong = data.clone();
    wrong.insert("ca.key".to_owned(), other["ca.key"].clone());
    assert!(judged(&wrong, day(1)).is_ok(), "as the RSA keys of Coil v2, until the certificate is due");
    let new = judged(&repaired(&wrong, day(244), &[]), day(244)).unwrap();
    assert_eq!(new.authorities.len(), 2);
    assert_eq!(new.authorities[1], old.authorities[0]);
}

#[test]
fn only_authorities_of_our_name_that_are_good_stay_trusted() {
    let (_, old) = fresh();
    let theirs = Subject { authority: "somebody".into(), names: vec![NAME.into()] };
    let lack = Lack::Authority(String::new());
    let life = Lifetimes::default();
    let stranger = repair(&Data::new(), &lack, &[], &theirs, day(0), &life).unwrap();
    let stranger = pair::certificates(&stranger["ca.crt"].0);
    let leaf = old.key.cert.clone();
    let trusted = [&stranger[..], &leaf[..], &old.authorities[..], &old.authorities[..]].concat();
    let new = judged(&repaired(&Data::new(), day(1), &trusted), day(1)).unwrap();
    assert_eq!(new.authorities[1..], old.authorities);
    let new = judged(&repaired(&Data::new(), day(5000), &old.authorities), day(5000)).unwrap();
    assert_eq!(new.authorities.len(), 1, "the old one has expired");
}

#[test]
fn other_names_need_another_certificate() {
    let (data, _) = fresh();
    let moved = Subject { names: vec!["coilv2-ipam-webhook-service.coil.svc".into()], ..subject() };
    let lack = judge(&data, &moved, day(1), &Lifetimes::default()).unwrap_err();
    assert!(matches!(&lack, Lack::Certificate(why) if why.contains("coil.svc")), "{lack:?}");
    let new = repair(&data, &lack, &[], &moved, day(1), &Lifetimes::default()).unwrap();
    assert!(judge(&new, &moved, day(1), &Lifetimes::default()).is_ok());
}
