//! Metrics that all programs have, and those of coild.

use prometheus::{IntGaugeVec, Opts, Registry};

/// A registry with the process metrics.
///
/// # Errors
/// Never in a fresh registry; the type says it.
pub fn registry() -> prometheus::Result<Registry> {
    let registry = Registry::new();
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    Ok(registry)
}

/// Says which datapath runs, and why.
///
/// # Errors
/// When the registry has the metric already.
pub fn datapath_info(registry: &Registry, mode: &str, reason: &str) -> prometheus::Result<()> {
    let opts = Opts::new("coil_datapath_info", "The datapath of this node, and why it is not eBPF.");
    let info = IntGaugeVec::new(opts, &["mode", "reason"])?;
    info.with_label_values(&[mode, reason]).set(1);
    registry.register(Box::new(info))
}
