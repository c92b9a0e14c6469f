//! The counters of a gRPC server, as go-grpc-prometheus has them.

use prometheus::{IntCounterVec, Opts, Registry};
use tonic::{Code, Status};

/// Name of the service, as the metrics have it.
const SERVICE: &str = "pkg.cnirpc.CNI";

/// The four counters that go-grpc-prometheus has.
#[derive(Clone)]
pub(super) struct GrpcMetrics {
    started: IntCounterVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    handled: IntCounterVec,
}

impl GrpcMetrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
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

    /// A request has come.
    pub(super) fn start(&self, method: &str) {
        let labels = ["unary", SERVICE, method];
        self.started.with_label_values(&labels).inc();
        self.received.with_label_values(&labels).inc();
    }

    /// It was answered.
    pub(super) fn count<T>(&self, method: &str, result: &Result<T, Status>) {
        let code = result.as_ref().err().map_or(Code::Ok, Status::code);
        let code = format!("{code:?}");
        self.handled.with_label_values(&["unary", SERVICE, method, code.as_str()]).inc();
        if result.is_ok() {
            self.sent.with_label_values(&["unary", SERVICE, method]).inc();
        }
    }
}
