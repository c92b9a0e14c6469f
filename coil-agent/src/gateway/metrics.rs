//! What a gateway tells of itself: the metrics of Coil v2, and more.

use std::{
    collections::{BTreeSet, HashMap},
    time::Instant,
};

use coil_api::gateway::GatewayClient;
use prometheus::{
    GaugeVec, IntGauge, IntGaugeVec, Opts, Registry, core::Collector, process_collector::ProcessCollector,
};

use super::{settings::Settings, state::State};

/// The gateway's gauges. What only grows is a gauge, too: coild counts it, and Coil v2 has it so.
pub(super) struct Metrics {
    settings: Settings,
    flows: IntGauge,
    limit: IntGauge,
    ready: IntGauge,
    by_state: IntGaugeVec,
    ports: IntGaugeVec,
    failures: IntGaugeVec,
    masqueraded: [IntGaugeVec; 2],
    invalid: [IntGaugeVec; 2],
    forged: IntGaugeVec,
    clients: IntGaugeVec,
    client_info: GaugeVec,
    shown: Shown,
}

/// Of what the gauges tell: what stays is not gone for a moment, in which somebody may read them.
#[derive(Default)]
struct Shown {
    /// Protocols and states.
    flows: BTreeSet<[String; 2]>,
    /// None until they are known.
    clients: Option<Vec<GatewayClient>>,
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Metrics {
    pub(super) fn new(settings: &Settings, registry: &Registry) -> Result<Self, prometheus::Error> {
        let labels: HashMap<String, String> =
            [("namespace", &settings.namespace), ("pod", &settings.pod), ("egress", &settings.egress)]
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v.clone()))
                .collect();
        let options = |name: &str, help: &str| Opts::new(format!("coil_egress_{name}"), help);
        let own = |name: &str, help: &str| options(name, help).const_labels(labels.clone());
        let gauge = |name: &str, help: &str| known(registry, IntGauge::with_opts(own(name, help)));
        let gauges =
            |name: &str, help: &str, more: &[&str]| known(registry, IntGaugeVec::new(own(name, help), more));
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let about_clients = ["namespace", "pod", "pod_ip", "interface", "egress", "egress_namespace"];
        Ok(Self {
            settings: settings.clone(),
            // Coil v2's names, for the kernel's connection tracking or the translations by eBPF.
            flows: gauge(
                "nf_conntrack_entries_count",
                "the number of translated flows in use in this gateway; by the kernel, all that its connection tracking has",
            )?,
            limit: gauge("nf_conntrack_entries_limit", "the limit of translated flows")?,
            ready: gauge("ready", "whether this gateway takes clients")?,
            by_state: gauges("flows", "translated flows by protocol and state", &["protocol", "state"])?,
            ports: gauges(
                "busiest_remote_ports",
                "ports that are in use towards the remote with most of them, and how many there are",
                &["what"],
            )?,
            failures: gauges("port_failures_total", "new flows that were refused a port", &["reason"])?,
            masqueraded: [
                gauges(
                    "nftables_masqueraded_packets_total",
                    "the number of packets that began a translation",
                    &["protocol"],
                )?,
                gauges(
                    "nftables_masqueraded_bytes_total",
                    "the number of bytes of packets that began a translation",
                    &["protocol"],
                )?,
            ],
            invalid: [
                gauges(
                    "nftables_invalid_packets_total",
                    "the number of packets that were dropped as of no known connection",
                    &["protocol"],
                )?,
                gauges(
                    "nftables_invalid_bytes_total",
                    "the number of bytes of packets that were dropped as of no known connection",
                    &["protocol"],
                )?,
            ],
            forged: gauges(
                "forged_packets_total",
                "the number of packets that this gateway's own kernel dropped as of no client",
                &["protocol"],
            )?,
            clients: known(
                registry,
                IntGaugeVec::new(
                    options("client_pod_count", "the number of client pods which use this egress"),
                    &["namespace", "egress"],
                ),
            )?,
            client_info: known(
                registry,
                GaugeVec::new(
                    options("client_pod_info", "information about the client pods of this egress"),
                    &about_clients,
                ),
            )?,
            shown: Shown::default(),
        })
    }

    pub(super) fn update(&mut self, state: &State, now: Instant) {
        let tracked = state.seen().and_then(|seen| seen.tracked);
        self.flows.set(number(tracked.or(state.flows()).unwrap_or_default()));
        self.ready.set(i64::from(state.takes_clients(now)));
        let Some(seen) = state.seen() else { return };
        self.limit.set(number(seen.limit));
        let mut states = BTreeSet::new();
        for flows in &seen.flows {
            self.by_state.with_label_values(&[&flows.protocol, &flows.state]).set(number(flows.flows));
            states.insert([flows.protocol.clone(), flows.state.clone()]);
        }
        for gone in self.shown.flows.difference(&states) {
            // What is shown is there.
            let _ = self.by_state.remove_label_values(gone);
        }
        self.shown.flows = states;
        if let Some(busiest) = &seen.busiest {
            self.ports.with_label_values(&["used"]).set(number(busiest.ports));
            self.ports.with_label_values(&["all"]).set(number(busiest.of));
        } else {
            self.ports.reset();
        }
        for (reason, failures) in &seen.failures {
            self.failures.with_label_values(&[reason]).set(number(*failures));
        }
        for (family, count) in &seen.translated {
            let set = |gauges: &[IntGaugeVec; 2], packets, bytes| {
                gauges[0].with_label_values(&[family]).set(number(packets));
                gauges[1].with_label_values(&[family]).set(number(bytes));
            };
            set(&self.masqueraded, count.packets, count.bytes);
            set(&self.invalid, count.invalid_packets, count.invalid_bytes);
        }
        for (family, packets) in &seen.forged {
            self.forged.with_label_values(&[family]).set(number(*packets));
        }
        if let Some(clients) = &seen.clients
            && self.shown.clients.as_ref() != Some(clients)
        {
            self.show(clients);
        }
    }

    fn show(&mut self, clients: &[GatewayClient]) {
        let Settings { namespace, egress, .. } = &self.settings;
        let about = |client: &GatewayClient| {
            [
                &client.namespace,
                &client.name,
                &client.address.to_string(),
                &client.interface,
                egress,
                namespace,
            ]
            .map(Clone::clone)
        };
        let now: BTreeSet<_> = clients.iter().map(about).collect();
        for client in &now {
            self.client_info.with_label_values(client).set(1.0);
        }
        let before: BTreeSet<_> = self.shown.clients.iter().flatten().map(about).collect();
        for gone in before.difference(&now) {
            let _ = self.client_info.remove_label_values(gone);
        }
        let pods: BTreeSet<_> = clients.iter().map(|client| (&client.namespace, &client.name)).collect();
        self.clients.with_label_values(&[namespace, egress]).set(number(pods.len() as u64));
        self.shown.clients = Some(clients.to_vec());
    }
}

/// Puts something into the registry.
fn known<T: Collector + Clone + 'static>(
    registry: &Registry,
    made: Result<T, prometheus::Error>,
) -> Result<T, prometheus::Error> {
    let made = made?;
    registry.register(Box::new(made.clone()))?;
    Ok(made)
}
