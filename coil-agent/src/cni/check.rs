//! CHECK: is all that ADD made there, and all that its result names?

use coil_api::cni::{CniResult, Interface, code};
use coil_netns::NetNs;
use serde::Deserialize as _;

use super::{Failure, Phases, failure, request::Request};
use crate::{
    ipam::Allocation,
    net::{Link, Rtnl},
    node::Node,
};

/// Names the first thing that is missing.
pub(super) async fn check(
    node: &Node,
    request: &Request,
    expected: &CniResult,
    phases: &mut Phases,
) -> Result<(), Failure> {
    let unknown = |msg: String| Failure::new(code::UNKNOWN_CONTAINER, msg);
    let gone = |e: &coil_netns::NetNsError| unknown(failure::with_causes(e));
    match &node.ipam {
        Some(ipam) => {
            let allocation = ipam.get(&request.owner).ok_or_else(|| {
                unknown(format!("attachment {} has no address here: it was never added", request.owner))
            })?;
            let ns = NetNs::open(&request.netns).map_err(|e| gone(&e))?;
            own_addresses(expected, &request.owner.ifname, &allocation)?;
            node.network.check(&ns, &allocation).await?;
            phases.end("network");
            present(expected, &request.owner.ifname, &ns).await?;
        }
        None => {
            let ns = NetNs::open(&request.netns).map_err(|e| gone(&e))?;
            present(expected, &request.owner.ifname, &ns).await?;
            phases.end("network");
            chained(node, request, &ns).await?;
        }
    }
    phases.end("result");
    Ok(())
}

/// The result that the plugin was given; of an older plugin's request none.
pub(super) fn expected(config: &coil_api::cni::NetConf) -> Result<CniResult, Failure> {
    match &config.prev_result {
        None => Ok(CniResult::default()),
        Some(result) => CniResult::deserialize(result)
            .map_err(|e| Failure::new(code::DECODING_FAILURE, format!("cannot read \"prevResult\": {e}"))),
    }
}

fn wrong(msg: String) -> Failure {
    Failure::new(code::INTERNAL, msg)
}

/// Addresses of the result on the pod's interface are those that the pool gave.
fn own_addresses(expected: &CniResult, ifname: &str, allocation: &Allocation) -> Result<(), Failure> {
    for ip in expected.ips.iter().filter(|ip| interface_of(expected, ip.interface, ifname) == ifname) {
        let address = ip.address.addr();
        if allocation.ipv4.is_none_or(|a| address != a) && allocation.ipv6.is_none_or(|a| address != a) {
            let has: Vec<String> =
                [allocation.ipv4.map(|a| a.to_string()), allocation.ipv6.map(|a| a.to_string())]
                    .into_iter()
                    .flatten()
                    .collect();
            return Err(wrong(format!(
                "address {address} of prevResult is not the pod's: AddressPool {:?} gave it {}",
                allocation.pool,
                has.join(" and ")
            )));
        }
    }
    Ok(())
}

/// The name of an address's interface; the pod's where the result does not say.
fn interface_of<'a>(result: &'a CniResult, index: Option<usize>, ifname: &'a str) -> &'a str {
    index.and_then(|i| result.interfaces.get(i)).map_or(ifname, |interface| interface.name.as_str())
}

fn is_inside(interface: &Interface) -> bool {
    interface.sandbox.as_ref().is_some_and(|sandbox| !sandbox.is_empty())
}

/// Interfaces and addresses of the result are there.
async fn present(expected: &CniResult, ifname: &str, ns: &NetNs) -> Result<(), Failure> {
    let inside = Rtnl::open_in(ns).map_err(|e| wrong(failure::with_causes(&e)))??;
    let (links, host) = (inside.links().await?, Rtnl::open()?.links().await?);
    for interface in &expected.interfaces {
        let (links, place) =
            if is_inside(interface) { (&links, "in the pod") } else { (&host, "on the node") };
        compare(interface, links, place)?;
    }
    let addresses = inside.addresses().await?;
    for ip in &expected.ips {
        let inside_too = ip.interface.and_then(|i| expected.interfaces.get(i)).is_none_or(is_inside);
        let name = interface_of(expected, ip.interface, ifname);
        let index = links.iter().find(|link| link.name == name).map(|link| link.index);
        let there = addresses.iter().any(|(on, net)| Some(*on) == index && net.addr() == ip.address.addr());
        if inside_too && !there {
            return Err(wrong(format!("address {} on {name} of the pod is missing", ip.address.addr())));
        }
    }
    Ok(())
}

fn compare(interface: &Interface, links: &[Link], place: &str) -> Result<(), Failure> {
    let name = &interface.name;
    let Some(link) = links.iter().find(|link| link.name == *name) else {
        return Err(wrong(format!("interface {name} {place} is missing")));
    };
    match &interface.mac {
        Some(mac) if !mac.is_empty() && !mac.eq_ignore_ascii_case(&link.mac.to_string()) => {
            Err(wrong(format!("interface {name} {place} has the address {}, not {mac}", link.mac)))
        }
        _ => Ok(()),
    }
}

/// Coil's own part in a pod that another plugin connected.
async fn chained(node: &Node, request: &Request, ns: &NetNs) -> Result<(), Failure> {
    let ifname = &request.owner.ifname;
    // Of a pod that exists, and nothing is changed: its name is enough where the runtime does not tell the UID.
    let of_name = || node.feed.read(|index| index.pods.get(&request.pod).map(|pod| pod.uid.clone()));
    let uid = request.uid.clone().or_else(of_name);
    let known = node.owner_of(&request.owner, uid.as_deref());
    let Some(link) = node.chained.find(ns, ifname).await? else {
        // ADD took no notice of it either: there is nothing of Coil's.
        return match known {
            None => Ok(()),
            Some(_) => Err(wrong(format!("the other end of {ifname} is not on this node any more"))),
        };
    };
    let Some(owner) = known else {
        let msg = format!("attachment {} is not known here: it was never added", request.owner);
        return Err(Failure::new(code::UNKNOWN_CONTAINER, msg));
    };
    if link.host.alias.as_ref().is_none_or(|alias| alias.owner != owner) {
        return Err(wrong(format!("the alias of {} on the node is missing", link.host.name)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ipam::AttachmentId, net::Mac};

    fn result(text: &str) -> CniResult {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn addresses_of_another_pod_are_no_result_of_this_one() {
        let owner = AttachmentId { container_id: "c".into(), ifname: "eth0".into() };
        let ipv4 = Some([10, 64, 0, 1].into());
        let allocation = Allocation { pool: "default".into(), owner, ipv4, ipv6: None };
        let check = |text: &str| own_addresses(&result(text), "eth0", &allocation);
        check(r#"{"ips":[{"address":"10.64.0.1/32"}]}"#).unwrap();
        check("{}").unwrap();
        let error = check(r#"{"ips":[{"address":"10.64.0.2/32"}]}"#).unwrap_err();
        assert!(error.msg.contains("10.64.0.2") && error.msg.contains("10.64.0.1"), "{}", error.msg);
        assert!(check(r#"{"ips":[{"address":"fd64::1/128"}]}"#).is_err());
        // A later plugin's.
        check(r#"{"interfaces":[{"name":"net1"}],"ips":[{"address":"192.0.2.1/24","interface":0}]}"#)
            .unwrap();
    }

    #[test]
    fn interfaces_are_compared() {
        let links = [Link { name: "eth0".into(), mac: Mac([2, 0, 0, 0, 0, 0xab]), ..Link::default() }];
        let interface = |name: &str, mac: Option<&str>| Interface {
            name: name.into(),
            mac: mac.map(str::to_owned),
            ..Interface::default()
        };
        for mac in [None, Some(""), Some("02:00:00:00:00:AB")] {
            compare(&interface("eth0", mac), &links, "in the pod").unwrap();
        }
        let error = compare(&interface("eth0", Some("02:00:00:00:00:01")), &links, "in the pod").unwrap_err();
        assert!(error.msg.contains("02:00:00:00:00:ab"), "{}", error.msg);
        let error = compare(&interface("net1", None), &links, "in the pod").unwrap_err();
        assert_eq!(error.msg, "interface net1 in the pod is missing");
    }
}
