//! The built plugin against a scripted coild.

#![expect(clippy::unwrap_used, reason = "a test: what fails is a failure")]

#[path = "support/mod.rs"]
mod support;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use coil_api::rpc::{CniError, ErrorCode, status};
use serde_json::{Value, json};
use support::{POD, Script, conf, plugin, serve, socket_in};
use tonic::{Code, Status};

fn as_code(document: &Value) -> (u64, &str) {
    (document["code"].as_u64().unwrap_or_default(), document["msg"].as_str().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verbs_reach_coild_and_answers_reach_the_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let socket = socket_in(&dir);
    let result = json!({"cniVersion": "1.1.0", "ips": [{"address": "fd00::2/128"}, {"address": "10.0.0.2/32"}],
        "routes": [{"dst": "::/0", "mtu": 1400}]});
    let error = CniError {
        code: ErrorCode::InvalidNetworkConfig.into(),
        msg: "no such thing".into(),
        details: "at all".into(),
    };
    let script = Script {
        result: result.to_string(),
        del: Some(status::with_error(Code::Internal, &error)),
        check: Some(Status::internal("odd")),
        ..Script::default()
    };
    let mut asked = serve(&socket, script);

    tokio::task::spawn_blocking(move || {
        let (ok, document) = plugin("ADD", &conf("0.4.0", &socket), &POD);
        assert!(ok, "{document}");
        assert_eq!(document["cniVersion"], "0.4.0");
        assert_eq!(document["ips"][0], json!({"address": "fd00::2/128", "version": "6"}));
        assert_eq!(document["routes"][0], json!({"dst": "::/0"}));
        let (ok, document) = plugin("ADD", &conf("1.1.0", &socket), &POD);
        assert_eq!((ok, document), (true, result));

        let (ok, document) = plugin("DEL", &conf("1.0.0", &socket), &POD);
        let expected = json!({"cniVersion": "1.0.0", "code": 7, "msg": "no such thing", "details": "at all"});
        assert_eq!((ok, document), (false, expected));

        let mut checked: Value = serde_json::from_str(&conf("1.0.0", &socket)).unwrap();
        checked["prevResult"] = json!({});
        let (ok, document) = plugin("CHECK", &checked.to_string(), &POD);
        assert_eq!((ok, as_code(&document)), (false, (999, "coild failed (Internal): odd")));

        for verb in ["GC", "STATUS"] {
            let (ok, document) = plugin(verb, &conf("1.1.0", &socket), &[("CNI_PATH", "/opt/cni/bin")]);
            assert_eq!((ok, document), (true, Value::Null), "{verb}: no output on success");
        }
    })
    .await
    .unwrap();
    let (verb, args) = asked.recv().await.unwrap();
    assert_eq!((verb, args.container_id.as_str(), args.ifname.as_str()), ("ADD", "c0ffee", "eth0"));
    assert_eq!(args.netns, "/proc/self/ns/uts");
    assert_eq!(args.args["K8S_POD_NAME"], "web-1");
    let verbs: Vec<&str> = std::iter::from_fn(|| asked.try_recv().ok()).map(|(verb, _)| verb).collect();
    assert_eq!(verbs, ["ADD", "DEL", "CHECK", "GC", "STATUS"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_another_plugin_its_result_is_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let socket = socket_in(&dir);
    let mut asked =
        serve(&socket, Script { result: "{\"cniVersion\":\"1.1.0\"}".into(), ..Script::default() });
    let document = tokio::task::spawn_blocking(move || {
        let mut chained: Value = serde_json::from_str(&conf("1.0.0", &socket)).unwrap();
        chained["prevResult"] = json!({"cniVersion": "1.0.0", "dns": {"nameservers": ["10.1.0.1"]},
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/p"}],
            "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1}], "x-other": true});
        let (ok, document) = plugin("ADD", &chained.to_string(), &POD);
        assert!(ok, "{document}");
        assert_eq!(document, chained["prevResult"]);
        chained["cniVersion"] = json!("0.3.1");
        plugin("ADD", &chained.to_string(), &POD).1
    })
    .await
    .unwrap();
    assert_eq!((&document["cniVersion"], &document["ips"][0]["version"]), (&json!("0.3.1"), &json!("4")));
    let (_, args) = asked.recv().await.unwrap();
    assert_eq!((args.ips, args.args["IS_CHAINED"].as_str()), (vec!["10.1.0.5".to_owned()], "true"));
    assert_eq!(args.interfaces, [("cni0".into(), false), ("eth0".into(), true)].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_is_coilds_and_an_older_coild_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let socket = socket_in(&dir);
    let error = CniError { code: 51, msg: "table 119".into(), details: String::new() };
    let script = Script {
        status: Some(status::with_error(Code::Internal, &error)),
        gc: Some(Status::unimplemented("unknown method Gc")),
        ..Script::default()
    };
    let _asked = serve(&socket, script);
    let other = dir.path().join("other.sock");
    let unknown =
        Script { status: Some(Status::unimplemented("unknown method Status")), ..Script::default() };
    let _asked_too = serve(&other, unknown);
    tokio::task::spawn_blocking(move || {
        let path = [("CNI_PATH", "/opt/cni/bin")];
        let (ok, document) = plugin("STATUS", &conf("1.1.0", &socket), &path);
        assert_eq!((ok, as_code(&document)), (false, (51, "table 119")));
        let (ok, document) = plugin("GC", &conf("1.1.0", &socket), &path);
        assert_eq!((ok, as_code(&document).0), (false, 999));
        assert!(as_code(&document).1.contains("older than the plugin"), "{document}");
        let (ok, document) = plugin("STATUS", &conf("1.1.0", &other), &path);
        assert!(ok, "it serves ADD: {document}");
    })
    .await
    .unwrap();
}

#[test]
fn without_coild() {
    let dir = tempfile::tempdir().unwrap();
    let socket = socket_in(&dir);
    let mut conf: Value = serde_json::from_str(&conf("1.1.0", &socket)).unwrap();
    conf["prevResult"] = json!({});
    let conf = conf.to_string();
    let mut added: Value = serde_json::from_str(&conf).unwrap();
    added.as_object_mut().unwrap().remove("prevResult");
    for (verb, stdin) in [("ADD", added.to_string()), ("CHECK", conf.clone()), ("GC", conf.clone())] {
        let env = [&POD[..], &[("CNI_PATH", "/opt/cni/bin")]].concat();
        let (ok, document) = plugin(verb, &stdin, &env);
        assert_eq!((ok, as_code(&document).0), (false, 11), "{document}");
        assert!(as_code(&document).1.contains("coild.sock"), "{document}");
    }
    // A socket that nobody serves any more is the same.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let (ok, document) = plugin("ADD", &added.to_string(), &POD);
    assert_eq!((ok, as_code(&document).0), (false, 11), "{document}");
    for _ in 0..2 {
        let (ok, document) = plugin("DEL", &conf, &POD);
        assert_eq!((ok, document), (true, Value::Null), "nothing is left");
    }
    let (ok, document) = plugin("STATUS", &conf, &[]);
    assert_eq!((ok, as_code(&document).0), (false, 50), "{document}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_waits_for_a_coild_that_is_restarted() {
    let dir = tempfile::tempdir().unwrap();
    let socket = socket_in(&dir);
    // It holds its socket until it has ended, and serves nobody new.
    let ending = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let path = socket.clone();
    let asking = tokio::task::spawn_blocking(move || plugin("STATUS", &conf("1.1.0", &path), &[]));
    ending.set_nonblocking(true).unwrap();
    let ending = tokio::net::UnixListener::from_std(ending).unwrap();
    drop(ending.accept().await.unwrap());
    drop(ending);
    std::fs::remove_file(&socket).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let _asked = serve(&socket, Script::default());
    let (ok, document) = asking.await.unwrap();
    assert!(ok, "{document}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coild_that_breaks_off_is_no_coild_that_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let socket = socket_in(&dir);
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        loop {
            drop(listener.accept().await.unwrap());
        }
    });
    let (ok, document) =
        tokio::task::spawn_blocking(move || plugin("DEL", &conf("1.0.0", &socket), &POD)).await.unwrap();
    assert_eq!((ok, as_code(&document).0), (false, 11), "what it did is not known: {document}");
}

#[test]
fn wrong_calls_are_refused_with_the_specifications_codes() {
    let dir = tempfile::tempdir().unwrap();
    let conf = conf("1.0.0", &socket_in(&dir));
    let without = |name: &str| POD.into_iter().filter(|(key, _)| *key != name).collect::<Vec<_>>();
    for (verb, stdin, env, code) in [
        ("", conf.as_str(), POD.to_vec(), 4),
        ("BREW", &conf, POD.to_vec(), 4),
        ("ADD", &conf, without("CNI_NETNS"), 4),
        ("ADD", &conf, without("CNI_CONTAINERID"), 4),
        ("DEL", &conf, without("CNI_IFNAME"), 4),
        ("GC", &conf, POD.to_vec(), 4),
        ("STATUS", &conf, vec![], 1),
        ("ADD", "{", POD.to_vec(), 6),
        ("ADD", r#"{"cniVersion":"9.0.0","name":"n"}"#, POD.to_vec(), 1),
        ("ADD", r#"{"cniVersion":"1.0.0"}"#, POD.to_vec(), 7),
    ] {
        let (ok, document) = plugin(verb, stdin, &env);
        assert_eq!((ok, as_code(&document).0), (false, code), "{verb} {document}");
        assert!(document["cniVersion"].is_string() && document["msg"].is_string(), "{document}");
    }
    let (_, document) = plugin("ADD", &conf, &[]);
    let all = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"];
    assert!(all.iter().all(|name| as_code(&document).1.contains(name)), "{document}");
}

#[test]
fn version_needs_no_input() {
    for stdin in ["{\"cniVersion\":\"1.0.0\"}", "", "{"] {
        let started = Instant::now();
        let (ok, document) = plugin("VERSION", stdin, &[]);
        assert!(ok, "{document}");
        assert_eq!(document["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
        let version = if stdin.contains("1.0.0") { "1.0.0" } else { "1.1.0" };
        assert_eq!(document["cniVersion"], version);
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    assert!(!Path::new("/run/netns/pod").exists());
}
