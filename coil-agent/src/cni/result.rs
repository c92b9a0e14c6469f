//! The result of ADD.

use coil_api::cni::{CniResult, Interface, IpConfig, Route};
use coil_netns::NetNs;
use std::net::IpAddr;

use crate::net::{
    plan::{PodGateways, host_net, pod_routes},
    pod::{PodLink, RoutePolicy},
};

/// The version that coild writes; the plugin makes the asked one of it.
const VERSION: &str = "1.1.0";
/// Place of the pod's side in `interfaces`.
const POD_SIDE: usize = 1;

/// What was made.
pub(super) fn result(
    ns: &NetNs,
    ifname: &str,
    pod: &PodLink,
    gateways: PodGateways,
    mtu: u32,
    policy: RoutePolicy,
) -> CniResult {
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
    CniResult {
        cni_version: VERSION.to_owned(),
        interfaces: vec![
            side(&pod.host.name, pod.host.mac, None),
            side(ifname, pod.mac, Some(ns.path().display().to_string())),
        ],
        ips: pod
            .addresses()
            .into_iter()
            .map(|a| IpConfig { address: host_net(a), gateway: gateway(a), interface: Some(POD_SIDE) })
            .collect(),
        routes: routes(gateways, mtu, policy),
        dns: None,
    }
}

/// What the pod was made to have. A route without a gateway would be read as one through the address's
/// gateway, so the way to the gateway itself is left out.
fn routes(gateways: PodGateways, mtu: u32, policy: RoutePolicy) -> Vec<Route> {
    let told = |value: u32| Some(value).filter(|value| *value != 0);
    // The index of the link is not told.
    pod_routes(gateways, 0, mtu, policy)
        .into_iter()
        .filter(|(_, path)| path.gateway.is_some())
        .map(|(dst, path)| Route { dst, gw: path.gateway, mtu: told(path.mtu), advmss: told(path.advmss) })
        .collect()
}

/// What a plugin that changed nothing answers: the plugin before it has the result.
pub(super) fn nothing() -> CniResult {
    CniResult { cni_version: VERSION.to_owned(), ..CniResult::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_told_with_what_makes_them_special() {
        let gateways = PodGateways { ipv4: "172.18.0.1".parse().ok(), ipv6: "fe80::1".parse().ok() };
        let plain = routes(gateways, 1500, Vec::new());
        let text: Vec<String> = plain.iter().map(|r| format!("{} {}", r.dst, r.gw.unwrap())).collect();
        assert_eq!(text, ["0.0.0.0/0 172.18.0.1", "::/0 fe80::1"]);
        assert!(plain.iter().all(|route| route.mtu.is_none() && route.advmss.is_none()));
        let client = routes(gateways, 1500, vec![("198.51.100.0/24".parse().unwrap(), true)]);
        assert_eq!((client[1].mtu, client[1].advmss), (Some(1472), Some(1432)));
    }
}
