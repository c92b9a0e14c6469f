//! The gRPC server on coild's UNIX socket.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use coil_api::rpc::{
    AddResponse, CniArgs, FILE_DESCRIPTOR_SET,
    cni_server::{Cni, CniServer},
};
use prometheus::{IntCounterVec, Opts, Registry};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request as GrpcRequest, Response, Status, transport::Server};
use tracing::{info, warn};

use super::{
    Failure, Phases, add, del,
    locks::Locks,
    request::{self, Request},
};
use crate::node::Node;

/// Name of the service, as the metrics have it.
const SERVICE: &str = "pkg.cnirpc.CNI";

/// Serves the plugin. Clones share all state.
#[derive(Clone)]
pub struct CniService {
    node: Arc<Node>,
    locks: Arc<Locks>,
    metrics: GrpcMetrics,
}

/// The four counters that go-grpc-prometheus has.
#[derive(Clone)]
struct GrpcMetrics {
    started: IntCounterVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    handled: IntCounterVec,
}

impl GrpcMetrics {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let make = |name: &str, help: &str, more: &[&str]| {
            let labels = [&["grpc_type", "grpc_service", "grpc_method"], more].concat();
            let counter = IntCounterVec::new(Opts::new(name, help), &labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        Ok(Self {
            started: make("grpc_server_started_total", "RPCs started on the server.", &[])?,
            received: make("grpc_server_msg_received_total", "Messages received on the server.", &[])?,
            sent: make("grpc_server_msg_sent_total", "Messages sent by the server.", &[])?,
            handled: make("grpc_server_handled_total", "RPCs completed on the server.", &["grpc_code"])?,
        })
    }

    fn count<T>(&self, method: &str, result: &Result<T, Status>) {
        let code = result.as_ref().err().map_or(Code::Ok, Status::code);
        let code = format!("{code:?}");
        self.handled.with_label_values(&["unary", SERVICE, method, code.as_str()]).inc();
        if result.is_ok() {
            self.sent.with_label_values(&["unary", SERVICE, method]).inc();
        }
    }
}

impl CniService {
    /// A service for a node; its metrics go to the registry.
    ///
    /// # Errors
    /// When the registry has such metrics already.
    pub fn new(node: Arc<Node>, registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self { node, locks: Arc::default(), metrics: GrpcMetrics::new(registry)? })
    }

    /// Runs a request in a task of its own: a plugin that goes away leaves nothing half done.
    async fn run<T, F>(&self, method: &'static str, work: F) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let labels = ["unary", SERVICE, method];
        self.metrics.started.with_label_values(&labels).inc();
        self.metrics.received.with_label_values(&labels).inc();
        let result = match tokio::spawn(work).await {
            Ok(result) => result.map(Response::new).map_err(Failure::into_status),
            Err(e) => Err(Status::internal(format!("{method} ended unexpectedly: {e}"))),
        };
        self.metrics.count(method, &result);
        result
    }
}

#[tonic::async_trait]
impl Cni for CniService {
    async fn add(&self, args: GrpcRequest<CniArgs>) -> Result<Response<AddResponse>, Status> {
        let this = self.clone();
        self.run("Add", async move {
            let request = Request::new(args.get_ref())?;
            let _alone = this.locks.lock(&request.owner).await;
            let mut phases = Phases::default();
            let (pod, owner) = (request.pod.to_string(), &request.owner);
            let added = add::add(&this.node, &request, &mut phases).await.map_err(|e| e.of_pod(&pod));
            let total = format!("{:.1}", phases.total());
            match added {
                Ok(added) => {
                    let a = &added.allocation;
                    let addresses: Vec<String> = a
                        .ipv4
                        .map(|a| a.to_string())
                        .into_iter()
                        .chain(a.ipv6.map(|a| a.to_string()))
                        .collect();
                    let addresses = addresses.join(",");
                    info!(%pod, %owner, pool = %a.pool, addresses, %phases, total, "ADD");
                    let result = serde_json::to_vec(&added.result).map_err(|e| {
                        Failure::new(coil_api::cni::code::INTERNAL, format!("cannot write the result: {e}"))
                    })?;
                    Ok(AddResponse { result })
                }
                Err(e) => {
                    warn!(%pod, %owner, code = e.code, error = %e, %phases, total, "ADD failed");
                    Err(e)
                }
            }
        })
        .await
    }

    async fn del(&self, args: GrpcRequest<CniArgs>) -> Result<Response<()>, Status> {
        let this = self.clone();
        self.run("Del", async move {
            let owner = request::owner(args.get_ref())?;
            let _alone = this.locks.lock(&owner).await;
            let mut phases = Phases::default();
            let result = del::del(&this.node, &owner, &mut phases).await;
            let total = format!("{:.1}", phases.total());
            match &result {
                Ok(()) => info!(%owner, %phases, total, "DEL"),
                Err(e) => warn!(%owner, code = e.code, error = %e, %phases, total, "DEL failed"),
            }
            result
        })
        .await
    }

    async fn check(&self, args: GrpcRequest<CniArgs>) -> Result<Response<()>, Status> {
        let this = self.clone();
        self.run("Check", async move {
            // CHECK comes with the result of ADD, as prevResult.
            let args = CniArgs { ips: Vec::new(), interfaces: [].into(), ..args.into_inner() };
            let request = Request::new(&args)?;
            let _alone = this.locks.lock(&request.owner).await;
            let result = del::check(&this.node, &request).await;
            result.map_err(|e| e.of_pod(&request.pod.to_string()))
        })
        .await
    }
}

/// The socket cannot be made or used.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the plugin on {}: {action}", path.display())]
pub struct SocketError {
    path: PathBuf,
    action: &'static str,
    source: io::Error,
}

/// Makes the socket, for root alone. It takes the place of one that an earlier run left.
///
/// # Errors
/// When the directory cannot be written.
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |action| move |source| SocketError { path: path.to_owned(), action, source };
    // Under another name until it has its mode.
    let mut hidden = path.as_os_str().to_owned();
    hidden.push(".new");
    let hidden = PathBuf::from(hidden);
    match fs::remove_file(&hidden) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove a stale socket")(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden).map_err(failed("listen"))?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600)).map_err(failed("set its mode"))?;
    fs::rename(&hidden, path).map_err(failed("put it in its place"))?;
    Ok(listener)
}

/// Serves until `stop` is done, and then until the running requests are.
///
/// # Errors
/// When the server fails.
pub async fn serve(
    listener: UnixListener,
    service: CniService,
    stop: impl Future<Output = ()>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
    };
    Server::builder()
        .add_service(CniServer::new(service))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await?;
    Ok(())
}
