//! What a pod's namespace has of a client. A pod that is a gateway, too, keeps it where nobody can say what it should be: the
//! gateway goes on for its own clients, whatever becomes of the Egresses that it uses itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use coil_netns::NetNs;
use ipnet::IpNet;

use super::{
    KernelError,
    apply::{PROTOCOL, ways},
    closed::{self, Fate},
    incoming, peers,
    plan::{PREFIXES, RULE_LINK_LOCAL, TABLE_REST, Tunnel, Wanted, tunnel_name},
    rules, tunnel,
};
use crate::net::{Rtnl, run_inside};

/// The client's part of it.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn client(ns: &NetNs) -> Result<Wanted, KernelError> {
    let rtnl = Rtnl::open_in(ns)??;
    let links = rtnl.links().await?;
    let names: Vec<String> = links
        .iter()
        .map(|link| link.name.clone())
        .filter(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    let inside = run_inside(ns, move || inside(names)).await??;
    let mut routes = BTreeMap::new();
    for (way, path) in ways(&rtnl).await? {
        let link = links.iter().find(|link| Some(link.index) == path.ifindex);
        routes.extend(link.map(|link| (way, link.name.clone())));
    }
    let all = Wanted {
        routes,
        rules: rules::list(&rtnl).await?,
        closed: closed::list(&rtnl, PROTOCOL, Fate::Closed).await?,
        passed: closed::list(&rtnl, PROTOCOL, Fate::Passed).await?,
        ..inside
    };
    let mut client = without_ways_back(all);
    // The Go version says nowhere who may send.
    client.peers.extend(client.tunnels.values().map(|tunnel| tunnel.remote));
    Ok(client)
}

/// Tunnels, peers and marks, on a thread inside the namespace.
fn inside(names: Vec<String>) -> Result<Wanted, KernelError> {
    let mut found = Wanted::default();
    for name in names {
        let read: Option<Tunnel> = tunnel::read(&name)
            .map_err(|source| KernelError::Tunnel { doing: format!("look at link {name}"), source })?;
        found.tunnels.extend(read.map(|tunnel| (name, tunnel)));
    }
    for v6 in [false, true] {
        found.peers.extend(peers::allowed(v6).map_err(KernelError::Peers)?);
        if incoming::is_there(v6).map_err(KernelError::Incoming)? {
            found.incoming.insert(v6);
        }
    }
    Ok(found)
}

/// Without what a gateway has for each of its clients: a tunnel, the one route into it, and that the client may send.
fn without_ways_back(mut all: Wanted) -> Wanted {
    let client = |(table, net): &(u32, IpNet), name: &String| {
        let is_back = *table == TABLE_REST
            && net.prefix_len() == net.max_prefix_len()
            && *name == tunnel_name(net.addr());
        is_back.then(|| net.addr())
    };
    let mut clients: BTreeSet<IpAddr> =
        all.routes.iter().filter_map(|(way, name)| client(way, name)).collect();
    // Where making all this failed half-way, a tunnel may have no route yet. One to a gateway has its rule before.
    let led: BTreeSet<&String> = all.routes.values().collect();
    let own: BTreeSet<IpNet> =
        all.rules.iter().filter(|rule| rule.priority == RULE_LINK_LOCAL).filter_map(|rule| rule.to).collect();
    let is_own = |name: &String, remote| led.contains(name) || own.contains(&IpNet::from(remote));
    let others = all.tunnels.iter().filter(|(name, tunnel)| !is_own(name, tunnel.remote));
    clients.extend(others.map(|(_, tunnel)| tunnel.remote));
    all.routes.retain(|way, name| client(way, name).is_none());
    all.tunnels.retain(|_, tunnel| !clients.contains(&tunnel.remote));
    all.peers.retain(|peer| !clients.contains(peer));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::kernel::plan::{self, Via};

    fn addresses(texts: [&str; 2]) -> Vec<IpAddr> {
        texts.map(|text| text.parse().unwrap()).into()
    }

    #[test]
    fn a_gateways_clients_are_told_from_its_own_egress() {
        let own = addresses(["10.64.0.1", "fd64::1"]);
        let via = Via {
            service: addresses(["10.96.0.7", "fd96::7"]),
            gateways: addresses(["10.64.7.7", "fd64:7::7"]),
            sport_auto: false,
            originating_only: true,
        };
        let policy =
            ["0.0.0.0/0", "203.0.113.9/32", "::/0", "fdaa::/64"].map(|net| (net.parse().unwrap(), Some(1)));
        let mut client = Wanted::default();
        plan::client(&mut client, &own, &policy.into(), &[(1, via)].into());
        // What there is as it stands in the namespace: a gateway has rules for its own packets alone.
        let mut there = client.clone();
        plan::gateway(&mut there, &own, "eth0", &[], Some(false));
        let rules = there.rules.clone();
        plan::gateway(&mut there, &own, "eth0", &addresses(["10.64.1.2", "fd64:1::2"]), Some(false));
        let expected = Wanted { rules, ..client };
        let found = Wanted { gateway: Vec::new(), clients: BTreeSet::new(), ..there.clone() };
        assert_eq!(without_ways_back(found.clone()), expected);
        // Making it failed before the routes: the gateway's own egress has rules already.
        let half = Wanted { routes: BTreeMap::new(), ..found };
        assert_eq!(without_ways_back(half), Wanted { routes: BTreeMap::new(), ..expected.clone() });
        // And with the gateway's part again, which may have other clients by now.
        let others = addresses(["10.64.1.3", "fd64:1::3"]);
        let (mut again, mut new) = (expected.clone(), there);
        plan::gateway(&mut again, &own, "eth0", &others, Some(false));
        new = without_ways_back(new);
        plan::gateway(&mut new, &own, "eth0", &others, Some(false));
        assert_eq!(again.tunnels.len(), 4);
        assert_eq!((again.rules, again.routes), (new.rules, new.routes));
    }
}
