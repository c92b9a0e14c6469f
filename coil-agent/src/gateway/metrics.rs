use std::{collections::HashMap, time::Instant};

use prometheus::{IntGauge, Opts, Registry, process_collector::ProcessCollector};

use super::{settings::Settings, state::State};

/// The gateway's gauges.
pub(super) struct Metrics {
    flows: IntGauge,
    ready: IntGauge,
}

impl Metrics {
    pub(super) fn new(settings: &Settings, registry: &Registry) -> Result<Self, prometheus::Error> {
        let labels: HashMap<String, String> =
            [("namespace", &settings.namespace), ("pod", &settings.pod), ("egress", &settings.egress)]
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v.clone()))
                .collect();
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::with_opts(Opts::new(name, help).const_labels(labels.clone()))?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        registry.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Self {
            // Coil v2's name for the translated flows of a gateway.
            flows: gauge(
                "coil_egress_nf_conntrack_entries_count",
                "the number of translated flows in use in this gateway",
            )?,
            ready: gauge("coil_egress_ready", "whether this gateway takes clients")?,
        })
    }

    pub(super) fn update(&self, state: &State, now: Instant) {
        let flows = state.flows().unwrap_or_default();
        self.flows.set(i64::try_from(flows).unwrap_or(i64::MAX));
        self.ready.set(i64::from(state.ready(now).is_ok()));
    }
}
