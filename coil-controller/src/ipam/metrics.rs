use prometheus::{IntGaugeVec, Opts, Registry};

/// The controller's gauges, one series for each pool.
#[derive(Debug)]
pub(super) struct Metrics {
    max: IntGaugeVec,
    allocated: IntGaugeVec,
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
        })
    }

    /// Shows a pool's numbers; none when the pool is gone.
    pub(super) fn set(&self, pool: &str, counts: Option<(u64, u64)>) {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        match counts {
            Some((fit, given)) => {
                self.max.with_label_values(&[pool]).set(number(fit));
                self.allocated.with_label_values(&[pool]).set(number(given));
            }
            None => {
                // Absent is what is wanted.
                let _ = self.max.remove_label_values(&[pool]);
                let _ = self.allocated.remove_label_values(&[pool]);
            }
        }
    }
}
