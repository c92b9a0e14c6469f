use std::os::unix::fs::symlink;

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::*;
use crate::webhook::cert::{issue, pair::certificates};

/// A certificate with its key, as files.
fn made() -> (String, String) {
    let now = Timestamp::now();
    let day = SignedDuration::from_hours(24);
    let authority = issue::authority("test", now, day).unwrap();
    let certificate = certificates(authority.certificate.as_bytes()).remove(0);
    let facts = pair::facts(&certificate).unwrap();
    let key = issue::signing_key(authority.key.as_bytes(), &facts).unwrap();
    let pair = issue::server((&certificate, &facts), key, &["x".to_owned()], now, day).unwrap();
    (pair.certificate, pair.key)
}

fn write(dir: &Path, (chain, key): &(String, String)) {
    std::fs::write(dir.join("tls.crt"), chain).unwrap();
    std::fs::write(dir.join("tls.key"), key).unwrap();
}

#[test]
fn new_content_is_new_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut follower = Follower::new(dir.path().to_owned());
    match follower.look() {
        Look::Bad(why) => assert!(why.contains("tls.crt") && why.contains("--enable-cert-rotation"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(follower.look(), Look::Same), "told once");
    let pair = made();
    write(dir.path(), &pair);
    assert!(matches!(follower.look(), Look::New(_)));
    write(dir.path(), &pair);
    assert!(matches!(follower.look(), Look::Same));
    write(dir.path(), &made());
    assert!(matches!(follower.look(), Look::New(_)));
    assert!(matches!(follower.look(), Look::Same));
}

#[test]
fn half_a_pair_is_told_when_it_stays_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut follower = Follower::new(dir.path().to_owned());
    let (old, new) = (made(), made());
    write(dir.path(), &old);
    assert!(matches!(follower.look(), Look::New(_)));
    std::fs::write(dir.path().join("tls.crt"), &new.0).unwrap();
    assert!(matches!(follower.look(), Look::Same), "it may be half-written");
    match follower.look() {
        Look::Bad(why) => assert!(why.contains("cannot be used"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(follower.look(), Look::Same), "told once");
    std::fs::remove_file(dir.path().join("tls.key")).unwrap();
    assert!(matches!(follower.look(), Look::Same));
    assert!(matches!(follower.look(), Look::Bad(_)), "another trouble is told again");
    std::fs::write(dir.path().join("tls.key"), &new.1).unwrap();
    assert!(matches!(follower.look(), Look::New(_)));
    std::fs::write(dir.path().join("tls.crt"), "rubbish").unwrap();
    assert!(matches!(follower.look(), Look::Same));
    assert!(matches!(follower.look(), Look::Bad(_)));
    write(dir.path(), &new);
    assert!(matches!(follower.look(), Look::Same), "what is served came back");
}

/// A Secret volume: files are links to `..data/FILE`, and `..data` is a link that is moved.
#[test]
fn a_secret_volume_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let version = |name: &str| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        write(&folder, &made());
        symlink(name, dir.path().join("..data_tmp")).unwrap();
        std::fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    };
    version("..2026_01");
    for file in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{file}"), dir.path().join(file)).unwrap();
    }
    let mut follower = Follower::new(dir.path().to_owned());
    assert!(matches!(follower.look(), Look::New(_)));
    version("..2026_02");
    std::fs::remove_dir_all(dir.path().join("..2026_01")).unwrap();
    assert!(matches!(follower.look(), Look::New(_)));
    assert!(matches!(follower.look(), Look::Same));
}
