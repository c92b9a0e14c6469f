//! The result of ADD.

use coil_api::cni::{CniResult, Interface, IpConfig, Route};
use coil_netns::NetNs;
use std::net::IpAddr;

use crate::net::{
    plan::{PodGateways, host_net},
    pod::PodLink,
};

/// The version that coild writes; the plugin makes the asked one of it.
const VERSION: &str = "1.1.0";
/// Place of the pod's side in `interfaces`.
const POD_SIDE: usize = 1;

/// What was made.
pub(super) fn result(ns: &NetNs, ifname: &str, pod: &PodLink, gateways: PodGateways, mtu: u32) -> CniResult {
    let side = |name: &str, mac: crate::net::Mac, sandbox: Option<String>| Interface {
        name: name.to_owned(),
        mac: Some(mac.to_string()),
        mtu: Some(mtu),
        sandbox,
    };
    let gateway = |address: IpAddr| match address {
        IpAddr::V4(_) => gateways.ipv4.map(IpAddr::from),
        IpAddr::V6(_) => gateways.ipv6.map(IpAddr::from),
    };
    let addresses = pod.addresses();
    CniResult {
        cni_version: VERSION.to_owned(),
        interfaces: vec![
            side(&pod.host.name, pod.host.mac, None),
            side(ifname, pod.mac, Some(ns.path().display().to_string())),
        ],
        ips: addresses
            .iter()
            .map(|a| IpConfig { address: host_net(*a), gateway: gateway(*a), interface: Some(POD_SIDE) })
            .collect(),
        routes: addresses
            .iter()
            .filter_map(|a| {
                let dst = if a.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
                Some(Route { dst: dst.parse().ok()?, gw: gateway(*a), mtu: None, advmss: None })
            })
            .collect(),
        dns: None,
    }
}
