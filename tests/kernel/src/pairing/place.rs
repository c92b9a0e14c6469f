//! Where a pair meets: the fabric, what the kernel needs inside the pods, and a network far away.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use coil_agent::{
    datapath::{Desired, EgressId},
    egress::{
        gateway::OWN_PORTS,
        kernel::{
            apply::{self, Common},
            plan::{self, Via, Wanted},
        },
        support::Support,
    },
};
use coil_kernel_tests::{
    Fabric, Pod,
    rules::{self, Front, Service, Writer},
};
use coil_netns::NetNs;
use ipnet::IpNet;

use crate::{Pair, beside};

/// MTU of the link to [`Place::far`].
pub(crate) const FAR_MTU: u32 = 1280;
/// Whether links of tunnel modules are in the first namespace alone.
const FALLBACK_LINKS: &str = "/proc/sys/net/core/fb_tunnels_only_for_init_net";
/// `--egress-port` and `--protocol-id`.
pub(crate) const COMMON: Common = Common { port: 5555 };

/// The namespaces of a pair.
pub(crate) struct Place {
    pub(crate) pair: Pair,
    pub(crate) fabric: Fabric,
    /// Behind the world.
    pub(crate) far: NetNs,
}

impl Place {
    /// Makes them.
    pub(crate) fn new(pair: Pair) -> Result<Self> {
        if let Some(missing) = Support::with_modules().missing() {
            bail!("no egress by the kernel: {missing}");
        }
        // The modules put links of their own into new namespaces, which take the number that an uplink has for the
        // programs. Where the kernel does everything they may: pods have to bear them.
        let none = if pair.client || pair.gateway { "1" } else { "0" };
        std::fs::write(FALLBACK_LINKS, none).with_context(|| format!("cannot write {FALLBACK_LINKS}"))?;
        let fabric = Fabric::with_agents(pair.v4, [pair.client, pair.gateway])?;
        let path = PathBuf::from("/run/netns").join(format!("coil-{}-far", std::process::id()));
        let place = Self { pair, fabric, far: NetNs::create(path)? };
        place.join_far()?;
        place.follow_egress()?;
        Ok(place)
    }

    /// The address of the far host.
    pub(crate) fn far_address(&self) -> IpAddr {
        if self.pair.v4 { [192, 0, 2, 2].into() } else { [0x2001, 0xdb8, 0xfa, 0, 0, 0, 0, 2].into() }
    }

    /// Where a client by the kernel finds its gateway.
    fn service(&self) -> IpAddr {
        if self.pair.v4 { [10, 96, 0, 20].into() } else { [0xfd96, 0, 0, 0, 0, 0, 0, 0x20].into() }
    }

    /// The wire between the world and the far host.
    fn join_far(&self) -> Result<()> {
        let there = self.far.path().display().to_string();
        let (family, len, more) = if self.pair.v4 { ("-4", 30, "") } else { ("-6", 126, " nodad") };
        let (near, far) =
            if self.pair.v4 { ("192.0.2.1", "192.0.2.2") } else { ("2001:db8:fa::1", "2001:db8:fa::2") };
        for arguments in [
            format!("link add far mtu {FAR_MTU} type veth peer name eth0 mtu {FAR_MTU} netns {there}"),
            "link set far up".to_owned(),
            format!("{family} addr add {near}/{len} dev far{more}"),
        ] {
            self.fabric.ip_in(Pod::World, &arguments)?;
        }
        // It asks for segments of 1500 bytes, as a host does that is behind the narrow link and not on it.
        let advmss = if self.pair.v4 { 1460 } else { 1440 };
        for arguments in [
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            format!("{family} addr add {far}/{len} dev eth0{more}"),
            format!("{family} route add default via {near} dev eth0 advmss {advmss}"),
        ] {
            self.far.run(|| ip(&arguments))??;
        }
        self.fabric.inside(Pod::World, || {
            ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
                .into_iter()
                .try_for_each(|name| std::fs::write(format!("/proc/sys/net/{name}"), "1"))
        })??;
        Ok(())
    }

    /// Makes both pods what coild makes of them.
    fn follow_egress(&self) -> Result<()> {
        let fabric = &self.fabric;
        for (node, ebpf) in [self.pair.client, self.pair.gateway].into_iter().enumerate() {
            if !ebpf {
                continue;
            }
            let desired = self.stated(node);
            fabric.with_datapath(node, |datapath| Ok(datapath.apply(&desired).map(drop)?))?;
        }
        if self.pair.client {
            self.serve()?;
            beside::make(self, self.service())?;
        } else {
            // The tunnel's link has the smaller MTU.
            fabric.forget_mtu(Pod::Client)?;
            self.serve()?;
            let policy: BTreeMap<IpNet, Option<EgressId>> =
                fabric.stated(0).policies.into_iter().map(|((_, net), egress)| (net, egress)).collect();
            let via = Via {
                service: vec![self.service()],
                gateways: vec![fabric.address(Pod::Gateway)],
                sport_auto: self.pair.sport_auto,
                originating_only: true,
            };
            let mut wanted = Wanted::default();
            plan::client(&mut wanted, &[fabric.address(Pod::Client)], &policy, &[(1, via)].into());
            self.apply(Pod::Client, &wanted)?;
        }
        // Beside the programs, its kernel does what they do not.
        let mut wanted = Wanted { ports: self.pair.gateway.then_some(OWN_PORTS), ..Wanted::default() };
        let own = [fabric.address(Pod::Gateway)];
        let clients = [Pod::Client, Pod::Neighbour, Pod::Plain].map(|pod| fabric.address(pod));
        plan::gateway(&mut wanted, &own, "eth0", &clients, Some(self.pair.sport_auto));
        self.apply(Pod::Gateway, &wanted)
    }

    /// What the agent of a node states.
    pub(crate) fn stated(&self, node: usize) -> Desired {
        let mut desired = self.fabric.stated(node);
        for egress in desired.egresses.values_mut() {
            egress.sport_auto = self.pair.sport_auto;
            egress.services = vec![self.service()];
            egress.originating_only = true;
        }
        let (gateway, plain) = (self.fabric.address(Pod::Gateway), self.fabric.address(Pod::Plain));
        desired.clients.insert((gateway, plain));
        for pod in &mut desired.pods {
            (pod.kernel_gateway, pod.originating_only) = (pod.gateway, pod.client);
            if pod.addresses.contains(&plain) {
                (pod.kernel_client, pod.policy) = (true, 1);
            }
        }
        desired
    }

    /// The rules of the Egress's Service on the clients' node.
    fn serve(&self) -> Result<()> {
        let endpoint = SocketAddr::new(self.fabric.address(Pod::Gateway), COMMON.port);
        let front = Front::Cluster(self.service());
        let service = Service { front, port: COMMON.port, protocol: "udp", endpoint };
        self.fabric.on_node(0, || rules::install(Writer::Nft, self.pair.v4, &[service]))?
    }

    fn apply(&self, pod: Pod, wanted: &Wanted) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ns = self.fabric.netns(pod)?;
        for (before, doing) in [(None, "make"), (Some(wanted), "make again"), (None, "find again")] {
            runtime
                .block_on(apply::apply(ns, "eth0", COMMON, before, wanted))
                .with_context(|| format!("cannot {doing} the inside of {pod:?}"))?;
        }
        Ok(())
    }

    /// What may explain a failure.
    pub(crate) fn state(&self) -> String {
        let family = if self.pair.v4 { "-4" } else { "-6" };
        let mut text = self.fabric.counters();
        // The kernel of a gateway has work in any case.
        let clients = if self.pair.client { None } else { Some(Pod::Client) };
        for pod in clients.into_iter().chain([Pod::Gateway]) {
            for command in [
                vec!["ip", "-s", "-d", "link"],
                vec!["ip", family, "rule"],
                vec!["ip", family, "route", "show", "table", "all"],
                vec!["nft", "list", "ruleset"],
            ] {
                let output =
                    self.fabric.inside(pod, || Command::new(command[0]).args(&command[1..]).output());
                if let Ok(Ok(output)) = output {
                    text += &format!(
                        "{pod:?}: {}\n{}",
                        command.join(" "),
                        String::from_utf8_lossy(&output.stdout)
                    );
                }
            }
        }
        text
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = NetNs::remove(self.far.path());
    }
}

fn ip(arguments: &str) -> Result<()> {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().context("cannot run ip (package iproute2)")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
