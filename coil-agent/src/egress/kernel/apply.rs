//! Makes a pod's namespace what it should be for its egress.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use coil_api::names::DEFAULT_PROTOCOL;
use coil_netns::NetNs;
use ipnet::IpNet;

use super::{
    KernelError,
    closed::{self, Fate},
    incoming, nft, peers,
    plan::{PREFIXES, TABLES, Tunnel, Wanted},
    rules, tunnel,
};
use crate::net::{
    Rtnl, RtnlError,
    plan::{OVERHEAD_V4, OVERHEAD_V6},
    route::{Owned, Path, Routes},
    run_inside, sysctl,
};

/// IP and TCP headers without options.
const TCP_HEADERS: [u32; 2] = [40, 60];

/// What is the same for all pods of the node.
#[derive(Debug, Clone, Copy)]
pub struct Common {
    /// `--egress-port`.
    pub port: u16,
}

/// What marks Coil's routes inside pods, whatever `--protocol-id` says of the node's: as Coil v2 has it.
pub(super) const PROTOCOL: u8 = DEFAULT_PROTOCOL;

/// Makes it so. Doing it twice changes nothing; `before` is what was last made, if that is known.
///
/// # Errors
/// When the kernel lacks something or refuses. What was done before stays: nothing of it lets a packet out
/// another way.
pub async fn apply(
    ns: &NetNs,
    ifname: &str,
    common: Common,
    before: Option<&Wanted>,
    wanted: &Wanted,
) -> Result<(), KernelError> {
    let rtnl = Rtnl::open_in(ns)??;
    let eth0 = rtnl.link_by_name(ifname).await?.ok_or_else(|| KernelError::NoInterface(ifname.to_owned()))?;
    // Who connected it tells what it has.
    let with_mtu = ways(&rtnl).await?.iter().any(|(_, path)| path.mtu != 0);
    let wanted = &if wanted.is_of_go(&rules::list(&rtnl).await?, with_mtu) {
        wanted.clone().without_incoming()
    } else {
        Wanted { adopted: false, ..wanted.clone() }
    };
    // From here on what is meant for a tunnel goes by one or not at all, whatever happens to the tunnels.
    closed::close(&rtnl, PROTOCOL, Fate::Closed, &not_open(&rtnl, wanted).await?).await?;
    closed::close(&rtnl, PROTOCOL, Fate::Passed, &wanted.passed).await?;
    closed::open_others(&rtnl, PROTOCOL, Fate::Passed, &wanted.passed).await?;
    if !wanted.adopted {
        rules::sync(&rtnl, &wanted.rules).await?;
    }
    // Where tunnels change, what they were goes first: their routes go with them. Those that an earlier agent made
    // are taken for what their names and ports say.
    let mut others = BTreeSet::new();
    if !wanted.adopted {
        let is_known = |name: &str| {
            before.is_some_and(|before| before.tunnels.get(name).is_none_or(|t| t.sport_auto.is_some()))
        };
        let mut asked = wanted.tunnels.clone();
        asked.retain(|name, _| !is_known(name));
        if !asked.is_empty() {
            let port = common.port;
            others = run_inside(ns, move || of_other_ports(&asked, port)).await??;
        }
    }
    let mut there = BTreeSet::new();
    for link in rtnl.links().await? {
        if !PREFIXES.iter().any(|prefix| link.name.starts_with(prefix)) {
            continue;
        }
        let stays = wanted.tunnels.get(&link.name).is_some_and(|tunnel| {
            let made = |before: &Wanted| before.tunnels.get(&link.name).is_some_and(|t| tunnel.may_be(t));
            before.is_none_or(made) && !others.contains(&link.name)
        });
        // Whatever else the Go version's client has may be of use to somebody: no route of Coil's leads there.
        let is_left = wanted.adopted && !wanted.tunnels.contains_key(&link.name);
        if stays {
            there.insert(link.name);
        } else if !is_left {
            // Its routes go with it, and nothing stands behind those of the Go version's client.
            if wanted.adopted {
                closed::close(&rtnl, PROTOCOL, Fate::Closed, &wanted.closed).await?;
            }
            rtnl.delete_link(link.index).await?;
        }
    }
    if !wanted.adopted || wanted.tunnels.keys().any(|name| !there.contains(name)) {
        // A link that takes FOU from any peer stays, also where nobody may send it any more.
        let mut listening = BTreeSet::new();
        for (v6, (receiver, _)) in [false, true].into_iter().zip(tunnel::RECEIVERS) {
            if rtnl.link_by_name(receiver).await?.is_some() {
                listening.insert(v6);
            }
        }
        let (ifname, wanted) = (ifname.to_owned(), wanted.clone());
        run_inside(ns, move || settings_and_tunnels(&ifname, common.port, &listening, &there, &wanted))
            .await??;
    }
    for (kernels, ours) in tunnel::OTHERS {
        // Made by the module; another name keeps it from being taken for somebody's tunnel.
        if let Some(link) = rtnl.link_by_name(kernels).await? {
            rtnl.rename_link(link.index, ours).await?;
        }
    }

    let links = rtnl.links().await?;
    for table in TABLES {
        let mut routes = Routes::new();
        for ((_, net), name) in wanted.routes.iter().filter(|((t, _), _)| *t == table) {
            let Some(link) = links.iter().find(|link| link.name == *name) else { continue };
            let (overhead, headers) = if net.addr().is_ipv4() {
                (OVERHEAD_V4, TCP_HEADERS[0])
            } else {
                (OVERHEAD_V6, TCP_HEADERS[1])
            };
            let mtu = eth0.mtu.saturating_sub(overhead);
            let path = Path { ifindex: Some(link.index), ..Path::default() };
            // The Go version leaves that to the tunnel's own MTU.
            let path =
                if wanted.adopted { path } else { Path { mtu, advmss: mtu.saturating_sub(headers), ..path } };
            routes.insert(*net, path);
        }
        Owned { table, protocol: PROTOCOL }.sync(&rtnl, &routes).await?;
    }
    closed::open_others(&rtnl, PROTOCOL, Fate::Closed, &not_open(&rtnl, wanted).await?).await?;
    if !wanted.adopted {
        // Last: where it cannot be, all else is as it should be, and the rules for what is marked find nothing.
        let (ifname, incoming) = (ifname.to_owned(), wanted.incoming.clone());
        run_inside(ns, move || mark_incoming(&ifname, &incoming)).await??;
    }
    Ok(())
}

/// Tunnels that are there with other ports, on a thread inside the namespace.
fn of_other_ports(wanted: &BTreeMap<String, Tunnel>, port: u16) -> Result<BTreeSet<String>, KernelError> {
    let mut others = BTreeSet::new();
    for (name, tunnel) in wanted {
        let failed = |source| KernelError::Tunnel { doing: format!("look at link {name}"), source };
        if tunnel::has_other_ports(name, tunnel, port).map_err(failed)? {
            others.insert(name.clone());
        }
    }
    Ok(others)
}

/// Routes into tunnels, by table and destination.
pub(super) async fn ways(rtnl: &Rtnl) -> Result<Vec<((u32, IpNet), Path)>, RtnlError> {
    let mut ways = Vec::new();
    for table in TABLES {
        let routes = Owned { table, protocol: PROTOCOL }.list(rtnl).await?;
        ways.extend(routes.into_iter().map(|(net, path)| ((table, net), path)));
    }
    Ok(ways)
}

/// What is to be closed: behind the routes of a client that the Go version made there is nothing, so of those only what has
/// no route yet, or none that stays.
async fn not_open(rtnl: &Rtnl, wanted: &Wanted) -> Result<BTreeSet<(u32, IpNet)>, RtnlError> {
    let mut closed = wanted.closed.clone();
    if wanted.adopted {
        for (way, _) in ways(rtnl).await?.into_iter().filter(|(way, _)| wanted.routes.contains_key(way)) {
            closed.remove(&way);
        }
    }
    Ok(closed)
}

/// On a thread inside the namespace, which takes FOU of some families already (true for IPv6).
fn settings_and_tunnels(
    ifname: &str,
    port: u16,
    listening: &BTreeSet<bool>,
    there: &BTreeSet<String>,
    wanted: &Wanted,
) -> Result<(), KernelError> {
    let new: Vec<(&String, &Tunnel)> =
        wanted.tunnels.iter().filter(|(name, _)| !there.contains(*name)).collect();
    let families: Vec<bool> = [false, true]
        .into_iter()
        .filter(|v6| wanted.tunnels.values().any(|t| t.local.is_ipv6() == *v6) || has(&wanted.gateway, *v6))
        .collect();
    if !families.is_empty() {
        // Replies come out of a tunnel that no route leads into.
        for name in ["all", "default", ifname] {
            sysctl::set(&format!("ipv4/conf/{name}/rp_filter"), "0")?;
        }
    }
    // Who may send is known before anything can come.
    for v6 in [false, true] {
        if !wanted.adopted && (families.contains(&v6) || listening.contains(&v6)) {
            peers::allow(v6, port, &wanted.peers).map_err(KernelError::Peers)?;
        }
    }
    let links = wanted.links();
    for own in &wanted.gateway {
        nft::ensure(*own, ifname, wanted.ports.as_ref(), &links).map_err(KernelError::Masquerade)?;
    }
    for v6 in families {
        tunnel::listen(port, v6)?;
    }
    for (name, tunnel) in new {
        tunnel::add(name, tunnel, port)?;
    }
    if !wanted.gateway.is_empty() {
        sysctl::set("ipv4/ip_forward", "1")?;
        if has(&wanted.gateway, true) {
            sysctl::set("ipv6/conf/all/forwarding", "1")?;
        }
    }
    Ok(())
}

/// Marks connections that come in, in these families (true for IPv6) and no other.
fn mark_incoming(ifname: &str, wanted: &BTreeSet<bool>) -> Result<(), KernelError> {
    for v6 in [false, true] {
        if wanted.contains(&v6) { incoming::ensure(v6, ifname) } else { incoming::remove(v6) }
            .map_err(KernelError::Incoming)?;
    }
    Ok(())
}

fn has(addresses: &[IpAddr], v6: bool) -> bool {
    addresses.iter().any(|address| address.is_ipv6() == v6)
}
