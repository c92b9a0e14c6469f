//! The built plugin against a coild that answers from a script.

#![expect(clippy::unwrap_used, reason = "a test: what fails is a failure")]

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use coil_api::rpc::{
    AddResponse, CniArgs, CniError, ErrorCode,
    cni_server::{Cni, CniServer},
    status,
};
use serde_json::{Value, json};
use tokio::{net::UnixListener, sync::mpsc};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, async_trait};

/// Answers ADD with a result, refuses DEL, and passes on what it was asked.
struct Script(mpsc::UnboundedSender<CniArgs>);

#[async_trait]
impl Cni for Script {
    async fn add(&self, request: Request<CniArgs>) -> Result<Response<AddResponse>, Status> {
        self.0.send(request.into_inner()).unwrap();
        let result =
            json!({"cniVersion": "1.0.0", "ips": [{"address": "fd00::2/128"}, {"address": "10.0.0.2/32"}]});
        Ok(Response::new(AddResponse { result: result.to_string().into_bytes() }))
    }

    async fn del(&self, _: Request<CniArgs>) -> Result<Response<()>, Status> {
        let code = ErrorCode::InvalidNetworkConfig.into();
        let error = CniError { code, msg: "no such thing".into(), details: "at all".into() };
        Err(status::with_error(tonic::Code::Internal, &error))
    }

    async fn check(&self, _: Request<CniArgs>) -> Result<Response<()>, Status> {
        Err(Status::internal("odd"))
    }
}

fn plugin(verb: &str, stdin: &str, env: &[(&str, &str)]) -> (bool, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coil"));
    command.env_clear().env("CNI_COMMAND", verb).envs(env.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.success(), document)
}

fn conf(version: &str, socket: &Path) -> String {
    json!({"cniVersion": version, "name": "k8s-pod-network", "type": "coil", "socket": socket}).to_string()
}

const POD: [(&str, &str); 4] = [
    ("CNI_CONTAINERID", "c0ffee"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_NETNS", "/run/netns/pod"),
    ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1"),
];

fn socket_in(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("coild.sock")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verbs_reach_coild_and_answers_reach_the_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let socket = socket_in(&dir);
    let (sender, mut asked) = mpsc::unbounded_channel();
    let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let server = tonic::transport::Server::builder().add_service(CniServer::new(Script(sender)));
    tokio::spawn(server.serve_with_incoming(incoming));

    tokio::task::spawn_blocking(move || {
        let (ok, document) = plugin("ADD", &conf("0.4.0", &socket), &POD);
        assert!(ok, "{document}");
        assert_eq!(document["cniVersion"], "0.4.0");
        assert_eq!(document["ips"][0], json!({"address": "fd00::2/128", "version": "6"}));

        let (ok, document) = plugin("DEL", &conf("1.0.0", &socket), &POD);
        let expected = json!({"cniVersion": "1.0.0", "code": 7, "msg": "no such thing", "details": "at all"});
        assert_eq!((ok, document), (false, expected));

        let (ok, document) = plugin("CHECK", &conf("1.0.0", &socket), &POD);
        assert_eq!(
            (ok, &document["code"], &document["msg"]),
            (false, &json!(999), &json!("coild failed (Internal): odd"))
        );
    })
    .await
    .unwrap();
    let args = asked.recv().await.unwrap();
    assert_eq!((args.container_id.as_str(), args.ifname.as_str()), ("c0ffee", "eth0"));
    assert_eq!(args.netns, "/run/netns/pod");
    assert_eq!(args.args["K8S_POD_NAME"], "web-1");
}

#[test]
fn without_coild_the_runtime_is_told_to_try_again() {
    let dir = tempfile::tempdir().unwrap();
    let (ok, document) = plugin("ADD", &conf("1.0.0", &socket_in(&dir)), &POD);
    assert_eq!((ok, &document["code"]), (false, &json!(11)), "{document}");
    assert!(document["msg"].as_str().unwrap().contains("coild.sock"), "{document}");
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
        ("ADD", "{", POD.to_vec(), 6),
        ("ADD", r#"{"cniVersion":"9.0.0","name":"n"}"#, POD.to_vec(), 1),
    ] {
        let (ok, document) = plugin(verb, stdin, &env);
        assert_eq!((ok, &document["code"]), (false, &json!(code)), "{verb} {document}");
    }
    let (ok, document) = plugin("VERSION", "{\"cniVersion\":\"1.0.0\"}", &[]);
    assert!(ok, "{document}");
    assert_eq!(document["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0"]));
}
