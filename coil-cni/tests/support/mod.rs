//! The plugin as a runtime starts it, and a coild that answers as it was told.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use coil_api::rpc::{
    AddResponse, CniArgs,
    cni_server::{Cni, CniServer},
};
use serde_json::{Value, json};
use tokio::{net::UnixListener, sync::mpsc};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, async_trait};

/// The attachment that tests are about. The namespace is a file that is none of the plugin's own.
pub(crate) const POD: [(&str, &str); 4] = [
    ("CNI_CONTAINERID", "c0ffee"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_NETNS", "/proc/self/ns/uts"),
    ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1"),
];

/// What coild answers: ADD with a result, other verbs with success where no error is given.
#[derive(Debug, Default)]
pub(crate) struct Script {
    pub(crate) result: String,
    pub(crate) del: Option<Status>,
    pub(crate) check: Option<Status>,
    pub(crate) gc: Option<Status>,
    pub(crate) status: Option<Status>,
}

struct Server {
    script: Script,
    asked: mpsc::UnboundedSender<(&'static str, CniArgs)>,
}

impl Server {
    fn answer<T>(
        &self,
        verb: &'static str,
        request: Request<CniArgs>,
        error: &Option<Status>,
        answer: T,
    ) -> Result<Response<T>, Status> {
        // A test that does not look drops the receiver.
        let _ = self.asked.send((verb, request.into_inner()));
        error.clone().map_or_else(|| Ok(Response::new(answer)), Err)
    }
}

#[async_trait]
impl Cni for Server {
    async fn add(&self, request: Request<CniArgs>) -> Result<Response<AddResponse>, Status> {
        let result = self.script.result.clone().into_bytes();
        self.answer("ADD", request, &None, AddResponse { result })
    }

    async fn del(&self, request: Request<CniArgs>) -> Result<Response<()>, Status> {
        self.answer("DEL", request, &self.script.del, ())
    }

    async fn check(&self, request: Request<CniArgs>) -> Result<Response<()>, Status> {
        self.answer("CHECK", request, &self.script.check, ())
    }

    async fn gc(&self, request: Request<CniArgs>) -> Result<Response<()>, Status> {
        self.answer("GC", request, &self.script.gc, ())
    }

    async fn status(&self, request: Request<CniArgs>) -> Result<Response<()>, Status> {
        self.answer("STATUS", request, &self.script.status, ())
    }
}

/// Serves a socket for as long as the runtime lives; what is asked comes out of the receiver.
pub(crate) fn serve(socket: &Path, script: Script) -> mpsc::UnboundedReceiver<(&'static str, CniArgs)> {
    let (asked, receiver) = mpsc::unbounded_channel();
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    let server = tonic::transport::Server::builder().add_service(CniServer::new(Server { script, asked }));
    tokio::spawn(server.serve_with_incoming(incoming));
    receiver
}

/// Runs a plugin; whether it ended well, and what it printed.
pub(crate) fn run(program: &Path, verb: &str, stdin: &str, env: &[(&str, &str)]) -> (bool, Value) {
    let mut command = Command::new(program);
    command.env_clear().env("CNI_COMMAND", verb).envs(env.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // A plugin that refuses its environment may end before it reads.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.success(), document)
}

/// The plugin as cargo builds it for tests.
pub(crate) fn plugin(verb: &str, stdin: &str, env: &[(&str, &str)]) -> (bool, Value) {
    run(Path::new(env!("CARGO_BIN_EXE_coil")), verb, stdin, env)
}

pub(crate) fn conf(version: &str, socket: &Path) -> String {
    json!({"cniVersion": version, "name": "k8s-pod-network", "type": "coil", "socket": socket}).to_string()
}

pub(crate) fn socket_in(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("coild.sock")
}
