//! The eBPF object, embedded at build time.

use aya::include_bytes_aligned;

/// The object file with programs and map definitions. Aligned, for the ELF parser.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/coil-ebpf"));

/// Names of the maps that outlive the agent, which are the names of their pins.
///
/// `coil_scratch` is missing: a program's own memory for one packet.
pub const PINNED_MAPS: [&str; 40] = [
    "coil_config",
    "coil_uplinks",
    "coil_counters",
    "coil_pods4",
    "coil_pods6",
    "coil_pools4",
    "coil_pools6",
    "coil_policy4",
    "coil_policy6",
    "coil_gateways4",
    "coil_gateways6",
    "coil_maglev4",
    "coil_maglev6",
    "coil_flows4",
    "coil_flows6",
    "coil_datagrams4",
    "coil_datagrams6",
    "coil_lost",
    "coil_ports",
    "coil_own_ports",
    "coil_nat4",
    "coil_nat6",
    "coil_nat_rev4",
    "coil_nat_rev6",
    "coil_pin4",
    "coil_pin6",
    "coil_affinity4",
    "coil_affinity6",
    "coil_paths4",
    "coil_paths6",
    "coil_frags4",
    "coil_frags6",
    "coil_clients4",
    "coil_clients6",
    "coil_lent4",
    "coil_lent6",
    "coil_returned4",
    "coil_returned6",
    "coil_tally4",
    "coil_tally6",
];
