use std::collections::BTreeSet;

use prometheus::{IntGaugeVec, Opts, Registry};

use super::index::Index;

/// The controller's gauges, one series for each pool.
#[derive(Debug)]
pub(super) struct Metrics {
    max: IntGaugeVec,
    allocated: IntGaugeVec,
    pools: BTreeSet<String>,
}

impl Metrics {
    /// Registers the gauges.
    ///
    /// # Errors
    /// When their names are taken in this registry.
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGaugeVec::new(Opts::new(name, help), &["pool"])?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        Ok(Self {
            max: gauge("coil_controller_max_blocks", "the maximum number of address blocks from this pool")?,
            allocated: gauge(
                "coil_controller_allocated_blocks",
                "the number of allocated address blocks from this pool",
            )?,
            pools: BTreeSet::new(),
        })
    }

    /// Shows what the index has.
    pub(super) fn update(&mut self, index: &Index) {
        let mut pools = BTreeSet::new();
        for (pool, max, allocated) in index.counts() {
            let max = max.and_then(|n| i64::try_from(n).ok()).unwrap_or_default();
            self.max.with_label_values(&[pool]).set(max);
            self.allocated.with_label_values(&[pool]).set(i64::try_from(allocated).unwrap_or(i64::MAX));
            pools.insert(pool.to_owned());
        }
        for gone in self.pools.difference(&pools) {
            // Absent is what is wanted.
            let _ = self.max.remove_label_values(&[gone]);
            let _ = self.allocated.remove_label_values(&[gone]);
        }
        self.pools = pools;
    }
}
