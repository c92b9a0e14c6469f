//! The routes inside a pod. Pure: from addresses and egress policy to a table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::route::{Path, Routes};

/// What FOU adds to a packet: an IP header and a UDP header, by family of the packet.
pub const OVERHEAD_V4: u32 = 20 + 8;
/// See [`OVERHEAD_V4`].
pub const OVERHEAD_V6: u32 = 40 + 8;
/// IP and TCP headers without options, by family: what an MSS does not count.
const TCP_HEADERS: (u32, u32) = (40, 60);

/// The gateways of a pod's families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodGateways {
    /// The node's address.
    pub ipv4: Option<Ipv4Addr>,
    /// The link-local address of the veth's host side.
    pub ipv6: Option<Ipv6Addr>,
}

/// All routes that Coil makes in a pod: the gateways, the defaults, and for a client of an Egress
/// its destinations with the MTU that leaves room for the encapsulation.
///
/// `policy` says of prefixes whether they are egress; the longest one decides.
#[must_use]
pub fn pod_routes(
    gateways: PodGateways,
    ifindex: u32,
    mtu: u32,
    policy: impl IntoIterator<Item = (IpNet, bool)>,
) -> Routes {
    let mut routes = Routes::new();
    let on_link = Path { ifindex: Some(ifindex), ..Path::default() };
    let via = |gateway: IpAddr, egress: bool| {
        let (overhead, headers) =
            if gateway.is_ipv4() { (OVERHEAD_V4, TCP_HEADERS.0) } else { (OVERHEAD_V6, TCP_HEADERS.1) };
        let mut path = Path { gateway: Some(gateway), ..on_link.clone() };
        if egress {
            path.mtu = mtu.saturating_sub(overhead);
            path.advmss = path.mtu.saturating_sub(headers);
        }
        path
    };
    if let Some(gateway) = gateways.ipv4 {
        routes.insert(host_net(gateway.into()), on_link.clone());
        routes.insert(any(gateway.into()), via(gateway.into(), false));
    }
    if let Some(gateway) = gateways.ipv6 {
        routes.insert(any(gateway.into()), via(gateway.into(), false));
    }
    for (prefix, egress) in policy {
        let gateway = match prefix {
            IpNet::V4(_) => gateways.ipv4.map(IpAddr::from),
            IpNet::V6(_) => gateways.ipv6.map(IpAddr::from),
        };
        let Some(gateway) = gateway else { continue };
        // The way to the gateway itself stays as it is; what never leaves the link needs no route,
        // and a route through the gateway would be wrong.
        if host_net(gateway) != prefix && !stays_on_link(prefix) {
            routes.insert(prefix, via(gateway, egress));
        }
    }
    routes
}

/// `/32` or `/128` of an address.
#[must_use]
pub fn host_net(address: IpAddr) -> IpNet {
    address.into()
}

fn any(like: IpAddr) -> IpNet {
    match like {
        IpAddr::V4(_) => IpNet::from(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::from(ipnet::Ipv6Net::default()),
    }
}

fn stays_on_link(prefix: IpNet) -> bool {
    match prefix.network() {
        IpAddr::V4(a) => {
            prefix.prefix_len() >= 4
                && (a.is_multicast() || a.is_broadcast() || a.is_loopback() || a.is_link_local())
        }
        IpAddr::V6(a) => {
            prefix.prefix_len() >= 8 && (a.is_multicast() || a.is_loopback() || a.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateways() -> PodGateways {
        PodGateways { ipv4: Some(Ipv4Addr::new(172, 18, 0, 1)), ipv6: "fe80::1".parse().ok() }
    }

    fn text(routes: &Routes) -> Vec<String> {
        routes
            .iter()
            .map(|(dst, p)| {
                let via = p.gateway.map(|g| format!(" via {g}")).unwrap_or_default();
                let mtu = if p.mtu == 0 { String::new() } else { format!(" mtu {} {}", p.mtu, p.advmss) };
                format!("{dst}{via}{mtu}")
            })
            .collect()
    }

    #[test]
    fn a_plain_pod_has_gateways_and_defaults() {
        assert_eq!(
            text(&pod_routes(gateways(), 2, 1500, [])),
            ["0.0.0.0/0 via 172.18.0.1", "172.18.0.1/32", "::/0 via fe80::1"]
        );
        let only_v6 = PodGateways { ipv4: None, ..gateways() };
        assert_eq!(text(&pod_routes(only_v6, 2, 1500, [])), ["::/0 via fe80::1"]);
    }

    #[test]
    fn destinations_have_the_reduced_mtu_and_the_cluster_the_full_one() {
        let policy = [
            "0.0.0.0/0 e",
            "10.0.0.0/8 -",
            "224.0.0.0/4 -",
            "172.18.0.1/32 -",
            "2001:db8::/32 e",
            "fe80::/10 -",
        ]
        .map(|line| {
            let (net, egress) = line.split_once(' ').unwrap();
            (net.parse().unwrap(), egress == "e")
        });
        assert_eq!(
            text(&pod_routes(gateways(), 2, 1500, policy)),
            [
                "0.0.0.0/0 via 172.18.0.1 mtu 1472 1432",
                "10.0.0.0/8 via 172.18.0.1",
                "172.18.0.1/32",
                "::/0 via fe80::1",
                "2001:db8::/32 via fe80::1 mtu 1452 1392",
            ]
        );
    }
}
