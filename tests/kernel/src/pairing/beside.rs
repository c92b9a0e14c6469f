//! A client that the Go version of Coil made, on the node of clients by the programs: links, rules and routes inside the
//! pod as Coil v2 leaves them, and nothing else.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use coil_kernel_tests::{Pod, traffic};

use crate::{
    place::{COMMON, Place},
    probes::translated,
};

/// Makes the pod a client, as the Go version's `founat` does.
pub(crate) fn make(place: &Place, service: IpAddr) -> Result<()> {
    let (port, own) = (COMMON.port, place.fabric.address(Pod::Plain));
    let encap = format!("encap fou encap-sport {port} encap-dport {port}");
    let world = place.fabric.address(Pod::World);
    let (family, name, links, [local, private]) = if place.pair.v4 {
        let links = [
            format!("fou add port {port} ipproto 4"),
            "link add coil_ipip4 type ipip external".to_owned(),
            format!("link add fou4_0a600014 type ipip local {own} remote {service} ttl 225 {encap}"),
        ];
        ("-4", "fou4_0a600014", links, ["169.254.0.0/16", "10.0.0.0/8"])
    } else {
        let links = [
            format!("fou add port {port} ipproto 41 -6"),
            "link add coil_ipip6 type ip6tnl external".to_owned(),
            format!(
                "link add fou6_5d3c1a2b type ip6tnl mode ip6ip6 local {own} remote {service} hoplimit 225 \
                 encaplimit 0 {encap} noencap-udp6-csum"
            ),
        ];
        ("-6", "fou6_5d3c1a2b", links, ["fe80::/10", "fc00::/7"])
    };
    let receiver = if place.pair.v4 { "coil_ipip4" } else { "coil_ipip6" };
    let lines = links.into_iter().chain([
        format!("link set {receiver} up"),
        format!("link set {name} up"),
        format!("{family} rule add to {local} lookup main priority 1800 protocol 30"),
        format!("{family} rule add lookup 117 priority 1900 protocol 30"),
        format!("{family} rule add to {private} lookup main priority 2000 protocol 30"),
        format!("{family} rule add lookup 118 priority 2100 protocol 30"),
        format!("{family} route add {world} dev {name} table 118 protocol 30"),
    ]);
    for line in lines {
        place.fabric.ip_in(Pod::Plain, &line)?;
    }
    place.fabric.inside(Pod::Plain, || {
        ["all", "default", "eth0", receiver, name].into_iter().try_for_each(|link| {
            let path = format!("/proc/sys/net/ipv4/conf/{link}/rp_filter");
            if std::path::Path::new(&path).exists() { std::fs::write(path, "0") } else { Ok(()) }
        })
    })??;
    Ok(())
}

/// Both clients get out, before and after the node's agent is replaced by another.
pub(crate) fn beside(place: &Place) -> Result<()> {
    for (round, port) in [("before", 8100), ("after", 8110)] {
        for (pod, port) in [(Pod::Plain, port), (Pod::Client, port + 1)] {
            translated(place, traffic::tcp(&place.fabric, pod, Pod::World, port, 1 << 18)?)?;
            translated(place, traffic::udp(&place.fabric, pod, Pod::World, 900)?)?;
            place.fabric.ping(pod, Pod::World)?;
        }
        if round == "before" {
            let desired = place.stated(0);
            ensure!(
                desired.pods.iter().any(|pod| pod.kernel_client),
                "the client with tunnels is not stated"
            );
            place.fabric.replace_agent(0, &desired, || Ok(()))?;
        }
    }
    Ok(())
}
