//! The gRPC service that the plugin calls, on coild's UNIX socket.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use coil_api::{
    cni::code,
    rpc::{
        AddResponse, CniArgs, FILE_DESCRIPTOR_SET,
        cni_server::{Cni, CniServer},
    },
};
use prometheus::Registry;
use tokio::{net::UnixListener, sync::RwLock};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request as GrpcRequest, Response, Status, transport::Server};
use tracing::{debug, info, warn};

use super::{
    Failure, Phases, add, check, del, gc,
    health::{self, Health},
    locks::Locks,
    metrics::GrpcMetrics,
    request::{self, Leaving, Request},
};
use crate::node::Node;

/// Serves the plugin. Clones share all state.
#[derive(Clone)]
pub struct CniService {
    node: Arc<Node>,
    health: Arc<Health>,
    locks: Arc<Locks>,
    metrics: GrpcMetrics,
    /// Each request holds it for reading until it is done.
    running: Arc<RwLock<()>>,
}

impl CniService {
    /// A service for a node; its metrics go to the registry.
    ///
    /// # Errors
    /// When the registry has such metrics already.
    pub fn new(node: Arc<Node>, health: Arc<Health>, registry: &Registry) -> prometheus::Result<Self> {
        let metrics = GrpcMetrics::new(registry)?;
        Ok(Self { node, health, locks: Arc::default(), metrics, running: Arc::default() })
    }

    /// Runs a request in a task of its own: a plugin that goes away leaves nothing half done.
    async fn run<T, F>(&self, method: &'static str, work: F) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        self.metrics.start(method);
        let running = self.running.clone().read_owned().await;
        let work = async move {
            let result = work.await;
            drop(running);
            result
        };
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
        self.run("Add", async move { this.do_add(args.get_ref()).await }).await
    }

    async fn del(&self, args: GrpcRequest<CniArgs>) -> Result<Response<()>, Status> {
        let this = self.clone();
        self.run("Del", async move { this.do_del(args.get_ref()).await }).await
    }

    async fn check(&self, args: GrpcRequest<CniArgs>) -> Result<Response<()>, Status> {
        let this = self.clone();
        self.run("Check", async move { this.do_check(args.get_ref()).await }).await
    }

    async fn gc(&self, args: GrpcRequest<CniArgs>) -> Result<Response<()>, Status> {
        let this = self.clone();
        self.run("Gc", async move { this.do_gc(args.get_ref()).await }).await
    }

    async fn status(&self, _: GrpcRequest<CniArgs>) -> Result<Response<()>, Status> {
        let this = self.clone();
        self.run("Status", async move { this.health.status() }).await
    }
}

/// The verbs, each with its line in the log.
impl CniService {
    async fn do_add(&self, args: &CniArgs) -> Result<AddResponse, Failure> {
        let request = Request::new(args)?;
        let mut phases = Phases::default();
        let _alone = self.locks.lock(&request.owner).await;
        phases.end("lock");
        let (pod, owner, netns) = (request.pod.to_string(), &request.owner, request.netns.display());
        let added =
            add::add(&self.node, &self.locks, &request, &mut phases).await.map_err(|e| e.of_pod(&pod));
        let total = phases.total();
        match added {
            Ok(added) => {
                let addresses: Vec<String> = added.addresses.iter().map(ToString::to_string).collect();
                let addresses = addresses.join(",");
                info!(%pod, %owner, %netns, pool = added.pool, addresses, %phases, total, "ADD");
                let result = serde_json::to_vec(&added.result)
                    .map_err(|e| Failure::new(code::INTERNAL, format!("cannot write the result: {e}")))?;
                Ok(AddResponse { result })
            }
            Err(e) => {
                warn!(%pod, %owner, %netns, code = e.code, error = %e, %phases, total, "ADD failed");
                Err(e)
            }
        }
    }

    async fn do_del(&self, args: &CniArgs) -> Result<(), Failure> {
        let leaving = Leaving::new(args)?;
        let (pod, owner) = (request::pod(args), &leaving.owner);
        let mut phases = Phases::default();
        let _alone = self.locks.lock(owner).await;
        phases.end("lock");
        let result = del::del(&self.node, &self.locks, &leaving, &mut phases).await;
        let total = phases.total();
        match &result {
            Ok(()) => info!(pod, %owner, %phases, total, "DEL"),
            Err(e) => warn!(pod, %owner, code = e.code, error = %e, %phases, total, "DEL failed"),
        }
        result
    }

    async fn do_check(&self, args: &CniArgs) -> Result<(), Failure> {
        let request = Request::new(args)?;
        let expected = check::expected(&request::config(args).unwrap_or_default())?;
        let mut phases = Phases::default();
        let _alone = self.locks.lock(&request.owner).await;
        phases.end("lock");
        let pod = request.pod.to_string();
        let result = check::check(&self.node, &request, &expected, &mut phases).await;
        let result = result.map_err(|e| e.of_pod(&pod));
        let (owner, total) = (&request.owner, phases.total());
        match &result {
            // Runtimes ask often.
            Ok(()) => debug!(%pod, %owner, %phases, total, "CHECK"),
            Err(e) => warn!(%pod, %owner, code = e.code, error = %e, %phases, total, "CHECK failed"),
        }
        result
    }

    async fn do_gc(&self, args: &CniArgs) -> Result<(), Failure> {
        let config = request::config(args)?;
        let mut phases = Phases::default();
        let collected = gc::gc(&self.node, &self.locks, &config, &mut phases).await;
        let gc::Collected { known, removed, .. } = collected;
        let (network, total, outcome) = (&config.name, phases.total(), collected.outcome());
        match &outcome {
            Ok(()) => info!(network, known, removed, %phases, total, "GC"),
            Err(e) => warn!(network, known, removed, code = e.code, error = %e, %phases, total, "GC failed"),
        }
        outcome
    }

    /// Lets go of pods whose links are gone; at once, and then after each `interval`.
    pub async fn let_go_of_lost_pods(self, interval: Duration) {
        loop {
            match del::lost(&self.node, &self.locks).await {
                Ok(lost) => {
                    lost.iter().for_each(|owner| info!(%owner, "its link is gone: as good as DEL"));
                }
                Err(e) => warn!(error = %e, "cannot look for pods whose links are gone; will try again"),
            }
            tokio::time::sleep(interval.max(health::PERIOD)).await;
        }
    }

    /// Keeps the answer to STATUS up to date.
    pub async fn watch_health(self) {
        loop {
            self.health.observe(Instant::now(), self.node.troubles());
            tokio::time::sleep(health::PERIOD).await;
        }
    }
}

/// Serves until `stop` is done, and then until the running requests are, also those whose plugins went away.
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
    let running = service.running.clone();
    Server::builder()
        .add_service(CniServer::new(service))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await?;
    drop(running.write().await);
    Ok(())
}
