use serde_json::json;

use super::*;

fn environment(netns: &str) -> Environment {
    Environment::read(|name| {
        Some(match name {
            "CNI_NETNS" => netns.to_owned(),
            "CNI_CONTAINERID" => "0123".to_owned(),
            "CNI_IFNAME" => "eth0".to_owned(),
            "CNI_ARGS" => "IgnoreUnknown=1;K8S_POD_NAME=p;K8S_POD_NAMESPACE=n".to_owned(),
            _ => return None,
        })
    })
}

/// A file that is there, and no namespace of this process.
const NETNS: &str = "/proc/self/ns/uts";

fn of(command: Command, change: impl Fn(&mut Value)) -> Result<Request, ErrorDocument> {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "net", "type": "coil", "socket": "/tmp/s"});
    change(&mut conf);
    request(command, &environment(NETNS), conf.to_string().as_bytes())
}

#[test]
fn everything_is_passed_on() {
    let request = of(Command::Add, |_| {}).unwrap();
    assert_eq!((request.socket.as_str(), request.version.as_str()), ("/tmp/s", "1.1.0"));
    assert_eq!(request.args.container_id, "0123");
    assert_eq!(request.args.netns, NETNS);
    assert_eq!(request.args.args["K8S_POD_NAME"], "p");
    assert_eq!(request.args.args["IS_CHAINED"], "false");
    assert!(String::from_utf8(request.args.stdin_data).unwrap().contains("\"net\""));
    let request = of(Command::Add, |c| drop(c.as_object_mut().unwrap().remove("socket"))).unwrap();
    assert_eq!(request.socket, DEFAULT_SOCKET);
}

#[test]
fn the_previous_result_is_read() {
    let request = of(Command::Add, |c| {
        c["prevResult"] = json!({"cniVersion": "0.4.0", "dns": {"nameservers": ["10.1.0.1"]},
            "ips": [{"version": "4", "address": "10.1.0.2/24"}, {"version": "6", "address": "fd00::2/64"}],
            "interfaces": [{"name": "veth0", "sandbox": ""}, {"name": "eth0", "sandbox": "/run/netns/x"}]});
    })
    .unwrap();
    assert_eq!(request.args.ips, ["10.1.0.2", "fd00::2"], "without lengths, as Coil v2 sends them");
    assert_eq!(request.args.interfaces, [("veth0".into(), false), ("eth0".into(), true)].into());
    assert_eq!(request.args.args["IS_CHAINED"], "true");
    let previous = request.previous.unwrap();
    assert_eq!(previous["cniVersion"], "1.1.0");
    assert_eq!(previous["ips"][0], json!({"address": "10.1.0.2/24"}));
    assert_eq!(previous["dns"]["nameservers"][0], "10.1.0.1");
}

#[test]
fn what_is_wrong_has_its_code() {
    use Command::{Add, Check, Del, Gc, Status};
    let set = |key: &'static str, value: Value| move |c: &mut Value| c[key] = value.clone();
    let refused = |command, change: &dyn Fn(&mut Value), expected: u32, part: &str| {
        let error = of(command, change).unwrap_err();
        assert_eq!(error.code, expected, "{}", error.msg);
        assert!(error.msg.contains(part), "{}", error.msg);
    };
    for (command, version) in [(Add, "0.2.0"), (Check, "0.3.1"), (Gc, "1.0.0"), (Status, "1.0.0"), (Del, "")]
    {
        refused(command, &set("cniVersion", json!(version)), code::INCOMPATIBLE_VERSION, command.name());
    }
    refused(Add, &set("cniVersion", json!(5)), code::DECODING_FAILURE, "configuration");
    for name in [json!(""), json!("a b"), json!("../x")] {
        refused(Add, &set("name", name), code::INVALID_NETWORK_CONFIG, "\"name\"");
    }
    refused(Add, &set("socket", json!("s")), code::INVALID_NETWORK_CONFIG, "\"socket\"");
    let mac = json!({"mac": "02:00:00:00:00:01"});
    refused(Add, &set("runtimeConfig", mac), code::UNSUPPORTED_FIELD, "\"mac\": \"02:00:00:00:00:01\"");
    refused(Check, &|_| {}, code::INVALID_NETWORK_CONFIG, "prevResult");
    for (previous, code, part) in [
        (json!({"cniVersion": "0.2.0"}), code::INCOMPATIBLE_VERSION, "0.2.0"),
        (json!({"cniVersion": 1}), code::INCOMPATIBLE_VERSION, "prevResult"),
        (json!("result"), code::DECODING_FAILURE, "prevResult"),
        (json!({"ips": [{"address": "nowhere"}]}), code::DECODING_FAILURE, "prevResult"),
    ] {
        refused(Add, &set("prevResult", previous.clone()), code, part);
        refused(Check, &set("prevResult", previous.clone()), code, part);
        assert!(of(Del, set("prevResult", previous)).is_ok(), "DEL goes on without it");
    }
    let incomplete = json!([{"ifname": "eth0"}]);
    refused(Gc, &set("cni.dev/valid-attachments", incomplete), code::DECODING_FAILURE, "containerID");
    for text in ["", "{", "[]", "\"coil\""] {
        let error = request(Add, &environment(NETNS), text.as_bytes()).unwrap_err();
        assert_eq!(error.code, code::DECODING_FAILURE, "{text}");
    }
}

#[test]
fn the_namespace_must_be_another_one() {
    let conf = br#"{"cniVersion":"1.0.0","name":"net","type":"coil"}"#;
    for (path, part) in [
        ("/nowhere/netns", "/nowhere/netns"),
        ("/etc/passwd", "no namespace"),
        ("/proc/self/ns/net", "the node's own"),
    ] {
        let error = request(Command::Add, &environment(path), conf).unwrap_err();
        assert_eq!(error.code, code::INVALID_ENVIRONMENT);
        assert!(error.msg.contains("CNI_NETNS") && error.msg.contains(part), "{}", error.msg);
        assert!(request(Command::Del, &environment(path), conf).is_ok());
    }
}
