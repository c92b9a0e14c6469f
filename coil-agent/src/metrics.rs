//! Metrics that all programs have, and those of coild.

use std::sync::Arc;

use coil_packet::Family;
use prometheus::{
    IntCounterVec, IntGaugeVec, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use tracing::warn;

use crate::node::Node;

/// A registry with the process metrics.
///
/// # Errors
/// Never in a fresh registry; the type says it.
pub fn registry() -> prometheus::Result<Registry> {
    let registry = Registry::new();
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    Ok(registry)
}

/// Which datapath runs, and why, as it is when it is asked for.
pub struct DatapathInfo {
    node: Arc<Node>,
    info: IntGaugeVec,
    kernel_egress: IntGaugeVec,
}

impl DatapathInfo {
    /// Puts a node's datapath into the registry.
    ///
    /// # Errors
    /// When the registry has the metric already.
    pub fn register(node: Arc<Node>, registry: &Registry) -> prometheus::Result<()> {
        let help = "The datapath of this node, and why it is not eBPF or not for all packets.";
        let info = IntGaugeVec::new(Opts::new("coil_datapath_info", help), &["mode", "reason"])?;
        let help = "Whether the kernel of this node has what egress without eBPF needs, and what it lacks.";
        let kernel_egress = IntGaugeVec::new(Opts::new("coil_egress_kernel_support", help), &["missing"])?;
        registry.register(Box::new(Self { node, info, kernel_egress }))
    }
}

impl Collector for DatapathInfo {
    fn desc(&self) -> Vec<&Desc> {
        [self.info.desc(), self.kernel_egress.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let (mode, reason) = self.node.datapath_state();
        self.info.reset();
        self.info.with_label_values(&[mode, &reason]).set(1);
        self.kernel_egress.reset();
        let missing = self.node.settings.kernel_egress_lacks.as_deref();
        self.kernel_egress
            .with_label_values(&[missing.unwrap_or_default()])
            .set(i64::from(missing.is_none()));
        [self.info.collect(), self.kernel_egress.collect()].concat()
    }
}

/// The programs' counters, read when they are asked for.
pub struct DatapathCounters {
    node: Arc<Node>,
    packets: IntCounterVec,
    bytes: IntCounterVec,
}

impl DatapathCounters {
    /// Puts a node's counters into the registry.
    ///
    /// # Errors
    /// When the registry has them already.
    pub fn register(node: Arc<Node>, registry: &Registry) -> prometheus::Result<()> {
        let make = |name: &str, help: &str| {
            IntCounterVec::new(Opts::new(name, help), &["path", "family", "verdict", "reason"])
        };
        registry.register(Box::new(Self {
            node,
            packets: make("coil_datapath_packets_total", "Packets by what the eBPF programs did with them.")?,
            bytes: make("coil_datapath_bytes_total", "Bytes, with the Ethernet header.")?,
        }))
    }
}

impl Collector for DatapathCounters {
    fn desc(&self) -> Vec<&Desc> {
        [self.packets.desc(), self.bytes.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        match self.node.plane.with(|plane| plane.counters()) {
            None => return Vec::new(),
            Some(Err(e)) => {
                warn!(error = %e, "cannot read the datapath's counters");
                return Vec::new();
            }
            Some(Ok(readings)) => {
                self.packets.reset();
                self.bytes.reset();
                for reading in readings {
                    let family = if reading.family == Family::V4 { "ipv4" } else { "ipv6" };
                    let labels =
                        [reading.path.name(), family, reading.reason.class().name(), reading.reason.name()];
                    self.packets.with_label_values(&labels).inc_by(reading.packets);
                    self.bytes.with_label_values(&labels).inc_by(reading.bytes);
                }
            }
        }
        [self.packets.collect(), self.bytes.collect()].concat()
    }
}
