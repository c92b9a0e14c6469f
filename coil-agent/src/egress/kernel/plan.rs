//! What a pod's namespace should have for its egress. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnet::IpNet;
use sha1::{Digest as _, Sha1};

use super::nft::Links;
use crate::{
    datapath::EgressId,
    egress::policy::{local_ranges, private_ranges},
};

/// Table of destinations inside private ranges.
pub const TABLE_PRIVATE: u32 = 117;
/// Table of all other destinations, and in gateway pods of the clients.
pub const TABLE_REST: u32 = 118;
/// Table of what answers connections that came in, where only some of a client's Egresses are originating-only.
pub const TABLE_INCOMING: u32 = 120;
/// All tables with routes of a client or a gateway.
pub const TABLES: [u32; 3] = [TABLE_PRIVATE, TABLE_REST, TABLE_INCOMING];
/// The kernel's main table.
pub const TABLE_MAIN: u32 = 254;

pub(super) const RULE_LINK_LOCAL: u32 = 1800;
/// What answers connections that came in: first [`TABLE_INCOMING`], then the main table.
const RULES_INCOMING: [u32; 2] = [1850, 1851];
const RULE_PRIVATE: u32 = 1900;
const RULE_IN_CLUSTER: u32 = 2000;
const RULE_REST: u32 = 2100;
/// All priorities of these rules.
pub const RULES: std::ops::RangeInclusive<u32> = RULE_LINK_LOCAL..=RULE_REST;

/// How the names of tunnel links to one peer begin, by family.
pub const PREFIXES: [&str; 2] = ["fou4_", "fou6_"];

/// A tunnel link to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// The pod's own address.
    pub local: IpAddr,
    /// The gateway's Service, or the client.
    pub remote: IpAddr,
    /// Source ports by flow, not the FOU port. None where nobody says: a tunnel that is there stays as it is.
    pub sport_auto: Option<bool>,
}

impl Tunnel {
    /// Whether one that is there may stay for this.
    pub fn may_be(&self, there: &Self) -> bool {
        let ports = self.sport_auto.zip(there.sport_auto).is_none_or(|(a, b)| a == b);
        ports && (self.local, self.remote) == (there.local, there.remote)
    }
}

/// A routing rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Its priority.
    pub priority: u32,
    /// Destination; none for all of a family.
    pub to: Option<IpNet>,
    /// IPv6, not IPv4.
    pub v6: bool,
    /// The interface on which packets came in; `lo` for the pod's own.
    pub iif: Option<String>,
    /// ICMP of the family alone.
    pub icmp: bool,
    /// Only what answers a connection that came in: see [`super::incoming`].
    pub incoming: bool,
    /// The table that is looked up.
    pub table: u32,
}

impl Rule {
    /// A rule for all packets of a family.
    #[must_use]
    pub const fn new(v6: bool, priority: u32, table: u32) -> Self {
        Self { priority, to: None, v6, iif: None, icmp: false, incoming: false, table }
    }
}

/// Everything that Coil makes in a pod's namespace for its egress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Links to peers by name.
    pub tunnels: BTreeMap<String, Tunnel>,
    /// Rules between priorities 1800 and 2100.
    pub rules: BTreeSet<Rule>,
    /// Routes by table and destination: the tunnel to take.
    pub routes: BTreeMap<(u32, IpNet), String>,
    /// Destinations that the pod reaches by a tunnel or not at all, by table.
    pub closed: BTreeSet<(u32, IpNet)>,
    /// Destinations of which a table says nothing, whatever it says of larger ones.
    pub passed: BTreeSet<(u32, IpNet)>,
    /// Families in which answers to connections that came in are told apart; true for IPv6.
    pub incoming: BTreeSet<bool>,
    /// Who may send FOU to the pod.
    pub peers: BTreeSet<IpAddr>,
    /// The pod's addresses when it is a gateway, for masquerading.
    pub gateway: Vec<IpAddr>,
    /// Those it is a gateway for.
    pub clients: BTreeSet<IpAddr>,
    /// What masquerading may use of ports, where the programs translate beside it.
    pub ports: Option<RangeInclusive<u16>>,
    /// A client that may be as Coil v2's Go version made it ([`Self::is_of_go`]): then its rules and tunnels stay as they are,
    /// and its routes follow.
    pub adopted: bool,
}

impl Wanted {
    /// A gateway's tunnels, by whose packets come out of them.
    #[must_use]
    pub fn links(&self) -> Links {
        let clients: BTreeSet<_> =
            self.clients.iter().map(|client| (tunnel_name(*client), *client)).collect();
        let is_own = |name: &&String| clients.iter().all(|(to_client, _)| to_client != *name);
        Links { own: self.tunnels.keys().filter(is_own).cloned().collect(), clients }
    }

    /// Where nobody says which ports tunnels have, they keep those of before, and new ones are like the others.
    pub fn keep_ports(&mut self, before: &Self) {
        let to_client = |tunnel: &&Tunnel| before.clients.contains(&tunnel.remote);
        let others = before.tunnels.values().filter(to_client).find_map(|tunnel| tunnel.sport_auto);
        for (name, tunnel) in self.tunnels.iter_mut().filter(|(_, tunnel)| tunnel.sport_auto.is_none()) {
            tunnel.sport_auto = before.tunnels.get(name).and_then(|tunnel| tunnel.sport_auto).or(others);
        }
    }

    /// The same without what tells answers to connections that came in apart: the Go version's clients have rules of their own
    /// for these.
    #[must_use]
    pub fn without_incoming(mut self) -> Self {
        self.rules.retain(|rule| !rule.incoming);
        self.routes.retain(|(table, _), _| *table != TABLE_INCOMING);
        self.closed.retain(|(table, _)| *table != TABLE_INCOMING);
        self.passed.retain(|(table, _)| *table != TABLE_INCOMING);
        self.incoming.clear();
        self
    }

    /// Whether a client with these rules, and routes into tunnels of which some have an MTU of their own or none has, is as the
    /// Go version made it. What this version makes has one.
    #[must_use]
    pub fn is_of_go(&self, rules: &BTreeSet<Rule>, with_mtu: bool) -> bool {
        let leads = |v6, priority, table| {
            rules.iter().any(|rule| {
                (rule.v6, rule.priority, rule.table, rule.to, rule.iif.as_ref())
                    == (v6, priority, table, None, None)
            })
        };
        self.adopted
            && !with_mtu
            && rules.iter().all(|rule| !rule.incoming)
            && self
                .closed
                .iter()
                .map(|(_, net)| net.addr().is_ipv6())
                .all(|v6| leads(v6, RULE_PRIVATE, TABLE_PRIVATE) && leads(v6, RULE_REST, TABLE_REST))
    }
}

/// The name of the link to a peer, as Coil v2 has it.
#[must_use]
pub fn tunnel_name(peer: IpAddr) -> String {
    match peer {
        IpAddr::V4(v4) => format!("{}{:08x}", PREFIXES[0], v4.to_bits()),
        IpAddr::V6(v6) => {
            let digest = Sha1::digest(v6.octets());
            let hex: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
            format!("{}{hex}", PREFIXES[1])
        }
    }
}

/// An Egress of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Via {
    /// Addresses of its Service.
    pub service: Vec<IpAddr>,
    /// Its gateways, those that are not ready or terminating too: their last replies are on the way.
    pub gateways: Vec<IpAddr>,
    /// `fouSourcePortAuto`.
    pub sport_auto: bool,
    /// Who comes in from its destinations is answered the way they came.
    pub originating_only: bool,
}

/// Adds what a client needs. `policy` is what of its destinations leaves through which Egress, as the programs
/// have it.
pub fn client(
    wanted: &mut Wanted,
    own: &[IpAddr],
    policy: &BTreeMap<IpNet, Option<EgressId>>,
    egresses: &BTreeMap<EgressId, Via>,
) {
    for local in own {
        let family = |net: &IpNet| net.addr().is_ipv4() == local.is_ipv4();
        let v6 = local.is_ipv6();
        let of_family: BTreeMap<&IpNet, &Option<EgressId>> =
            policy.iter().filter(|(net, _)| family(net)).collect();
        if of_family.values().all(|egress| egress.is_none()) {
            continue;
        }
        let rule = |priority, to, table| Rule { to, ..Rule::new(v6, priority, table) };
        for net in local_ranges().into_iter().filter(|net| family(net) && is_link_local(*net)) {
            wanted.rules.insert(rule(RULE_LINK_LOCAL, Some(net), TABLE_MAIN));
        }
        wanted.rules.insert(rule(RULE_PRIVATE, None, TABLE_PRIVATE));
        wanted.rules.insert(rule(RULE_REST, None, TABLE_REST));
        for (net, egress) in of_family.iter().map(|(net, egress)| (*net, *egress)) {
            let Some(id) = egress else {
                wanted.rules.insert(rule(RULE_IN_CLUSTER, Some(*net), TABLE_MAIN));
                // The table of private destinations is asked before that rule.
                let around = |(of, egress): (&&IpNet, &&Option<EgressId>)| {
                    egress.is_some() && is_private(**of) && of.contains(net)
                };
                if of_family.iter().any(around) {
                    wanted.passed.insert((TABLE_PRIVATE, *net));
                }
                continue;
            };
            let table = if is_private(*net) { TABLE_PRIVATE } else { TABLE_REST };
            wanted.closed.insert((table, *net));
            let Some(via) = egresses.get(id) else { continue };
            let Some(remote) = via.service.iter().find(|a| a.is_ipv4() == local.is_ipv4()) else { continue };
            let name = tunnel_name(*remote);
            // What the tunnel sends must not enter it again, whichever range the Service's address is in.
            wanted.rules.insert(rule(RULE_LINK_LOCAL, Some(IpNet::from(*remote)), TABLE_MAIN));
            let tunnel = Tunnel { local: *local, remote: *remote, sport_auto: Some(via.sport_auto) };
            wanted.tunnels.insert(name.clone(), tunnel);
            wanted.routes.insert((table, *net), name);
            // Connection tracking on the way may have put the Service in a gateway's place.
            wanted
                .peers
                .extend(via.gateways.iter().filter(|gateway| gateway.is_ipv6() == v6).chain([remote]));
        }
        incoming(wanted, v6, &of_family, egresses);
    }
}

/// Adds what lets a client answer connections that came in from destinations of Egresses that are originating-only.
fn incoming(
    wanted: &mut Wanted,
    v6: bool,
    policy: &BTreeMap<&IpNet, &Option<EgressId>>,
    egresses: &BTreeMap<EgressId, Via>,
) {
    let originating = |egress: &Option<EgressId>| {
        egress.and_then(|id| egresses.get(&id)).is_some_and(|via| via.originating_only)
    };
    if !policy.values().any(|egress| originating(egress)) {
        return;
    }
    wanted.incoming.insert(v6);
    let rule = |priority, table| Rule { incoming: true, ..Rule::new(v6, priority, table) };
    let [others, main] = RULES_INCOMING;
    wanted.rules.insert(rule(main, TABLE_MAIN));
    if policy.values().all(|egress| egress.is_none() || originating(egress)) {
        return;
    }
    wanted.rules.insert(rule(others, TABLE_INCOMING));
    for (net, egress) in policy {
        if egress.is_none() || originating(egress) {
            wanted.passed.insert((TABLE_INCOMING, **net));
            continue;
        }
        wanted.closed.insert((TABLE_INCOMING, **net));
        let ways = [TABLE_PRIVATE, TABLE_REST].into_iter();
        if let Some(name) = ways.filter_map(|table| wanted.routes.get(&(table, **net))).next().cloned() {
            wanted.routes.insert((TABLE_INCOMING, **net), name);
        }
    }
}

/// Adds what a gateway needs: a way back to each client. Where it is a client too, that holds for its own packets
/// alone: what it carries for its clients leaves by itself. `sport_auto` as in [`Tunnel`].
pub fn gateway(
    wanted: &mut Wanted,
    own: &[IpAddr],
    ifname: &str,
    clients: &[IpAddr],
    sport_auto: Option<bool>,
) {
    wanted.gateway = own.to_vec();
    let own_alone = |rule: Rule| Rule { iif: rule.iif.or_else(|| Some("lo".to_owned())), ..rule };
    wanted.rules = std::mem::take(&mut wanted.rules).into_iter().map(own_alone).collect();
    for local in own {
        let v6 = local.is_ipv6();
        let mut rule = |iif: &str, icmp| {
            let iif = Some(iif.to_owned());
            wanted.rules.insert(Rule { iif, icmp, ..Rule::new(v6, RULE_IN_CLUSTER, TABLE_REST) });
        };
        rule(ifname, false);
        // The pod's own errors about clients' packets: connection tracking on the way has never seen those outside of
        // the tunnel, and kube-proxy drops what it finds invalid.
        rule("lo", true);
        for client in clients.iter().filter(|c| c.is_ipv6() == v6) {
            let name = tunnel_name(*client);
            wanted.tunnels.insert(name.clone(), Tunnel { local: *local, remote: *client, sport_auto });
            wanted.peers.insert(*client);
            wanted.clients.insert(*client);
            wanted.routes.insert((TABLE_REST, IpNet::from(*client)), name);
        }
    }
}

fn is_link_local(net: IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.addr() == Ipv4Addr::new(169, 254, 0, 0),
        IpNet::V6(net) => net.addr() == Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
    }
}

fn is_private(net: IpNet) -> bool {
    private_ranges().iter().any(|private| private.contains(&net))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAYS: [&str; 2] = ["10.64.7.7", "fd64:7::7"];

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn addresses<const N: usize>(texts: [&str; N]) -> BTreeSet<IpAddr> {
        texts.into_iter().map(|text| text.parse().unwrap()).collect()
    }

    fn via(service: &[&str]) -> Via {
        let service = service.iter().map(|a| a.parse().unwrap()).collect();
        let gateways = GATEWAYS.map(|a| a.parse().unwrap()).into();
        Via { service, gateways, sport_auto: false, originating_only: false }
    }

    #[test]
    fn names_are_those_of_coil_v2() {
        assert_eq!(tunnel_name("10.96.0.7".parse().unwrap()), "fou4_0a600007");
        let v6 = tunnel_name("fd96::7".parse().unwrap());
        assert!(v6.starts_with("fou6_") && v6.len() == 13, "{v6}");
    }

    #[test]
    fn a_client_has_one_tunnel_per_egress_and_family() {
        let own = ["10.64.0.1", "fd64::1"].map(|a| a.parse().unwrap());
        let policy = [
            (net("0.0.0.0/0"), Some(1)),
            (net("10.0.0.0/8"), None),
            (net("10.20.0.0/16"), Some(1)),
            (net("::/0"), Some(1)),
            (net("fc00::/7"), None),
        ]
        .into();
        let via = Via { sport_auto: true, ..via(&["10.96.0.7", "fd96::7"]) };
        let mut wanted = Wanted::default();
        client(&mut wanted, &own, &policy, &[(1, via)].into());
        assert_eq!(wanted.tunnels.len(), 2);
        assert!(
            wanted
                .tunnels
                .values()
                .all(|t| t.sport_auto == Some(true) && t.local.is_ipv4() == t.remote.is_ipv4())
        );
        let tables: Vec<(u32, String)> =
            wanted.routes.keys().map(|(table, net)| (*table, net.to_string())).collect();
        let expected = [(117, "10.20.0.0/16"), (118, "0.0.0.0/0"), (118, "::/0")];
        assert_eq!(tables, expected.map(|(t, n)| (t, n.to_owned())));
        let rules: Vec<(u32, bool, u32)> = wanted.rules.iter().map(|r| (r.priority, r.v6, r.table)).collect();
        for (priority, table) in [(1800, 254), (1900, 117), (2000, 254), (2100, 118)] {
            assert!(
                rules.contains(&(priority, false, table)) && rules.contains(&(priority, true, table)),
                "{rules:?}"
            );
        }
        let service = |r: &&Rule| r.priority == 1800 && r.to == Some(net("10.96.0.7/32"));
        assert_eq!(wanted.rules.iter().filter(service).count(), 1, "no tunnel inside itself");
        let [v4, v6] = GATEWAYS;
        assert_eq!(wanted.peers, addresses(["10.96.0.7", "fd96::7", v4, v6]));
        let before = wanted.clone();
        client(&mut wanted, &own, &[(net("0.0.0.0/0"), None)].into(), &BTreeMap::new());
        assert_eq!(wanted, before, "no client of anything");
    }

    #[test]
    fn a_client_of_the_go_version_is_known_by_its_rules_and_routes() {
        let of = |v6| [Rule::new(v6, 1900, 117), Rule::new(v6, 2100, 118)];
        let closed = [(118, net("0.0.0.0/0")), (118, net("::/0"))].into();
        let wanted = Wanted { adopted: true, closed, ..Wanted::default() };
        let both: BTreeSet<Rule> = [of(false), of(true)].concat().into_iter().collect();
        assert!(wanted.is_of_go(&both, false));
        assert!(!wanted.is_of_go(&both, true), "this version's routes");
        assert!(!wanted.is_of_go(&of(false).into(), false), "without rules nothing leads there");
        let marked = both.iter().cloned().chain([Rule { incoming: true, ..Rule::new(false, 1851, 254) }]);
        assert!(!wanted.is_of_go(&marked.collect(), false), "this version's rules");
        assert!(!wanted.is_of_go(&BTreeSet::new(), false));
        assert!(!Wanted { adopted: false, ..wanted }.is_of_go(&both, false));
    }

    #[test]
    fn who_came_in_is_answered_the_way_they_came_where_the_egress_says_so() {
        let own = ["10.64.0.1", "fd64::1"].map(|a| a.parse().unwrap());
        let originating = Via { originating_only: true, ..via(&["10.96.0.7", "fd96::7"]) };
        let mut policy: BTreeMap<IpNet, Option<EgressId>> =
            [(net("0.0.0.0/0"), Some(1)), (net("10.0.0.0/8"), None), (net("2001:db8::/32"), Some(1))].into();
        let made = |policy: &_| {
            let egresses = [(1, originating.clone()), (2, via(&["10.96.0.8"]))].into();
            let mut wanted = Wanted::default();
            client(&mut wanted, &own, policy, &egresses);
            wanted
        };
        let incoming = |wanted: &Wanted| -> Vec<(u32, bool, u32)> {
            let rules = wanted.rules.iter().filter(|rule| rule.incoming);
            rules.map(|rule| (rule.priority, rule.v6, rule.table)).collect()
        };
        let all = made(&policy);
        assert_eq!(incoming(&all), [(1851, false, 254), (1851, true, 254)]);
        assert_eq!((all.incoming.len(), all.passed.len()), (2, 0));
        // Another Egress, which is not: inside of the first's destinations, and around one of the cluster's.
        policy.extend([(net("192.0.2.0/24"), Some(2)), (net("192.0.2.128/25"), Some(1))]);
        let mixed = made(&policy);
        assert_eq!(incoming(&mixed), [(1850, false, 120), (1851, false, 254), (1851, true, 254)]);
        let passed = ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.128/25"].map(|n| (120, net(n)));
        assert_eq!(mixed.passed, passed.into());
        assert_eq!(mixed.routes[&(120, net("192.0.2.0/24"))], "fou4_0a600008");
        assert!(mixed.closed.contains(&(120, net("192.0.2.0/24"))));
        policy = [(net("192.0.2.0/24"), Some(2))].into();
        let none = made(&policy);
        assert_eq!((incoming(&none).len(), none.incoming.len()), (0, 0));
    }

    #[test]
    fn a_gateway_has_a_way_back_to_each_client() {
        let own = ["10.64.0.3".parse().unwrap()];
        let clients = ["10.64.1.2", "10.64.1.3", "fd64::2"].map(|a| a.parse().unwrap());
        let mut wanted = Wanted::default();
        gateway(&mut wanted, &own, "eth0", &clients, Some(false));
        assert_eq!((wanted.tunnels.len(), wanted.routes.len(), wanted.rules.len()), (2, 2, 2));
        assert_eq!(wanted.routes[&(118, net("10.64.1.2/32"))], "fou4_0a400102");
        let rules: Vec<_> =
            wanted.rules.iter().map(|r| (r.priority, r.iif.as_deref(), r.icmp, r.table)).collect();
        assert_eq!(rules, [(2000, Some("eth0"), false, 118), (2000, Some("lo"), true, 118)]);
        assert_eq!(wanted.peers, addresses(["10.64.1.2", "10.64.1.3"]), "of the family that it has");
        assert_eq!(wanted.clients, wanted.peers);
    }

    #[test]
    fn a_gateway_without_its_egress_keeps_its_ports() {
        let own = ["10.64.0.3".parse().unwrap()];
        let made = |clients: &[&str], sport_auto| {
            let mut wanted = Wanted::default();
            let policy = [(net("0.0.0.0/0"), Some(1))].into();
            client(&mut wanted, &own, &policy, &[(1, via(&["10.96.0.7"]))].into());
            let clients: Vec<IpAddr> = clients.iter().map(|a| a.parse().unwrap()).collect();
            gateway(&mut wanted, &own, "eth0", &clients, sport_auto);
            wanted
        };
        let before = made(&["10.64.1.2"], Some(true));
        let mut after = made(&["10.64.1.2", "10.64.1.3"], None);
        after.keep_ports(&before);
        assert_eq!(after, made(&["10.64.1.2", "10.64.1.3"], Some(true)));
        // Nobody has ever said.
        let mut unsaid = made(&["10.64.1.2"], None);
        unsaid.keep_ports(&made(&["10.64.1.2"], None));
        let (name, [fixed, auto]) =
            ("fou4_0a400102", [false, true].map(|auto| made(&["10.64.1.2"], Some(auto))));
        assert!(
            unsaid.tunnels[name].may_be(&auto.tunnels[name])
                && fixed.tunnels[name].may_be(&unsaid.tunnels[name])
        );
        assert!(!fixed.tunnels[name].may_be(&auto.tunnels[name]));
    }

    #[test]
    fn a_gateway_that_is_a_client_carries_its_clients_itself() {
        let own = ["10.64.0.3".parse().unwrap()];
        let via = via(&["10.96.0.7"]);
        let mut wanted = Wanted::default();
        client(&mut wanted, &own, &[(net("0.0.0.0/0"), Some(1))].into(), &[(1, via)].into());
        gateway(&mut wanted, &own, "eth0", &["10.64.1.2".parse().unwrap()], None);
        assert_eq!(wanted.tunnels.len(), 2);
        let from: std::collections::BTreeSet<_> = wanted.rules.iter().map(|r| r.iif.as_deref()).collect();
        assert_eq!(
            from,
            [Some("eth0"), Some("lo")].into(),
            "nothing takes what comes out of a client's tunnel"
        );
        assert_eq!(wanted.peers, addresses(["10.64.1.2", "10.96.0.7", GATEWAYS[0]]));
        let links = wanted.links();
        let client = ("fou4_0a400102".to_owned(), "10.64.1.2".parse().unwrap());
        assert_eq!((links.clients, links.own), ([client].into(), ["fou4_0a600007".to_owned()].into()));
    }
}
