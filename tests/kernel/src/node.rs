//! A node of the cases in a network namespace: links, routes, and the datapath on them.

use std::{net::IpAddr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError},
    programs::SchedClassifier,
};
use coil_agent::datapath::{Datapath, Desired, Egress, Gateway, LocalPod, Reading, monotonic_seconds};
use coil_cases::{
    Case, Given, Net, Route, World,
    host::{Entry, HostAddr, entry, key},
    world::{self, BESIDE, POLICY, Prefix, Role, UPLINK},
};
use coil_netns::NetNs;
use coil_packet::abi::{FlowKey, FlowValue, cluster_range};
use ipnet::IpNet;

use crate::{Pins, test_run};

/// A network namespace of one test.
struct Namespace {
    path: PathBuf,
    ns: NetNs,
}

impl Namespace {
    fn new(pins: &Pins) -> Result<Self> {
        let name = pins.config().pin_root.file_name().map(PathBuf::from).context("a pin directory")?;
        let path = std::env::temp_dir().join(name);
        let ns = NetNs::create(&path)?;
        Ok(Self { path, ns })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = NetNs::remove(&self.path);
    }
}

/// A node on which programs run on packets.
pub struct Node {
    datapath: Option<Datapath>,
    maps: PathBuf,
    desired: Desired,
}

/// What the kernel did with a frame.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The program's return code.
    pub code: i32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// The counters that the frame moved.
    pub counted: Vec<Reading>,
    /// The flow that a case asks for, as it is then: state and phase.
    pub left: Option<(u8, u8)>,
    /// The packet's mark afterwards.
    pub mark: u32,
}

impl Node {
    /// Makes the node of the cases in a new network namespace and runs `work` there, with the pins of
    /// the datapath in `pins`.
    ///
    /// # Errors
    /// Without root, when the kernel refuses something, or what `work` fails with.
    pub fn run<T: Send>(pins: &Pins, work: impl FnOnce(&mut Self) -> Result<T> + Send) -> Result<T> {
        let namespace = Namespace::new(pins)?;
        namespace.ns.run(|| {
            make_links()?;
            let (v4, v6) = (World::new(&Net::v4()), World::new(&Net::v6()));
            make_routes(&v4, "-4")?;
            make_routes(&v6, "-6")?;
            let mut datapath = pins.open()?;
            let desired = desired()?;
            datapath.apply(&desired)?;
            work(&mut Self { datapath: Some(datapath), maps: pins.config().pin_root.join("maps"), desired })
        })?
    }

    /// The datapath.
    ///
    /// # Errors
    /// After [`Self::end_agent`].
    pub fn datapath(&mut self) -> Result<&mut Datapath> {
        self.datapath.as_mut().context("the agent has ended")
    }

    /// The agent ends; what it made stays.
    pub fn end_agent(&mut self) {
        self.datapath = None;
    }

    /// Runs a case on tables that hold what it states and nothing else.
    ///
    /// # Errors
    /// When the kernel cannot run it.
    pub fn case(&mut self, case: &Case) -> Result<Outcome> {
        if (self.desired.fast_udp, self.desired.host_stack) != (case.fast_udp, case.host_stack) {
            self.desired.fast_udp = case.fast_udp;
            self.desired.host_stack = case.host_stack;
            self.desired.forward = !case.host_stack;
            let desired = self.desired.clone();
            self.datapath()?.apply(&desired)?;
        }
        if case.net.is_v4() {
            self.case_in::<[u8; 4]>(case, "4")
        } else {
            self.case_in::<[u8; 16]>(case, "6")
        }
    }

    /// Empties the tables of a family, and puts in what is given.
    ///
    /// # Errors
    /// When a map refuses.
    pub fn begin(&mut self, net: &Net, given: &[Given]) -> Result<()> {
        if net.is_v4() { self.fill::<[u8; 4]>("4", given) } else { self.fill::<[u8; 16]>("6", given) }
    }

    fn case_in<A: HostAddr + Pod>(&mut self, case: &Case, family: &str) -> Result<Outcome> {
        self.fill::<A>(family, &case.given)?;
        let outcome = self.packet(case.path.name(), case.ingress, &case.frame)?;
        let left = match &case.leaves {
            None => None,
            Some(flow) => match self.flows::<A>(flow.protocol, family)?.get(&key(flow), 0) {
                Ok(value) => Some((value.state, value.phase)),
                Err(MapError::KeyNotFound) => None,
                Err(error) => return Err(error.into()),
            },
        };
        Ok(Outcome { left, ..outcome })
    }

    /// Runs a program on a frame that comes in on a link.
    ///
    /// # Errors
    /// When the kernel cannot run it.
    pub fn packet(&mut self, program: &str, ingress: u32, frame: &[u8]) -> Result<Outcome> {
        self.marked_packet(program, ingress, frame, 0)
    }

    /// The same with a mark on the packet.
    ///
    /// # Errors
    /// When the kernel cannot run it.
    pub fn marked_packet(&mut self, program: &str, ingress: u32, frame: &[u8], mark: u32) -> Result<Outcome> {
        let before = self.datapath()?.counters()?;
        let code: &SchedClassifier =
            self.datapath()?.ebpf().program(program).context("no such program")?.try_into()?;
        let ran = test_run(code, ingress, frame, mark).with_context(|| format!("cannot run {program}"))?;
        let counted = self.datapath()?.counters()?.into_iter().zip(before);
        // The kernel's own packets, such as router solicitations, pass the other programs meanwhile.
        let counted = counted
            .filter(|(after, before)| after.packets != before.packets && after.path.name() == program)
            .map(|(after, _)| after);
        Ok(Outcome {
            code: ran.code,
            frame: ran.frame,
            counted: counted.collect(),
            left: None,
            mark: ran.mark,
        })
    }

    /// A handle of a program: for a thread that runs it while others do, and the agent works.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn handle(&mut self, program: &str) -> Result<SchedClassifier> {
        // Beside the directory of the maps: what a failure leaves there goes with the other pins.
        let pin = self.maps.with_file_name(program);
        let code: &mut SchedClassifier =
            self.datapath()?.ebpf().program_mut(program).context("no such program")?.try_into()?;
        code.pin(&pin).with_context(|| format!("cannot pin {program} to {}", pin.display()))?;
        let handle =
            SchedClassifier::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()));
        std::fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))?;
        handle
    }

    /// Opens a pinned table of the datapath.
    ///
    /// # Errors
    /// When it is not there, or another's.
    pub fn pinned<K: Pod, V: Pod>(&self, name: &str) -> Result<HashMap<MapData, K, V>> {
        Ok(HashMap::try_from(Map::from_map_data(MapData::from_pin(self.maps.join(name))?)?)?)
    }

    /// Empties flows and translations of a family, and puts in what is given.
    fn fill<A: HostAddr + Pod>(&self, family: &str, given: &[Given]) -> Result<()> {
        self.table::<FlowKey<A>, FlowValue>(&format!("coil_flows{family}"))?;
        self.table::<FlowKey<A>, FlowValue>(&format!("coil_datagrams{family}"))?;
        let mut nat = self.table(&format!("coil_nat{family}"))?;
        let mut nat_rev = self.table(&format!("coil_nat_rev{family}"))?;
        let mut pins = self.table(&format!("coil_pin{family}"))?;
        let mut affinity = self.table(&format!("coil_affinity{family}"))?;
        let mut frags = self.table(&format!("coil_frags{family}"))?;
        // A machine that has just started cannot say of anything that it was long ago.
        let idle = |given: &Given| if let Given::Nat { idle, .. } = given { *idle } else { 0 };
        let oldest = given.iter().map(idle).max().unwrap_or_default();
        while monotonic_seconds() < oldest {
            std::thread::sleep(Duration::from_millis(100));
        }
        let now = monotonic_seconds();
        for given in given {
            match entry::<A>(given, now) {
                Entry::Flow(key, value) => {
                    let protocol = u8::try_from(key.protocol)?;
                    self.flows(protocol, family)?.insert(key, value, 0)?;
                }
                Entry::Frag(key, value) => frags.insert(key, value, 0)?,
                Entry::Pin(key, value) => pins.insert(key, value, 0)?,
                Entry::Affinity(key, value) => affinity.insert(key, value, 0)?,
                Entry::Nat(key, value, reverse, lease) => {
                    nat.insert(key, value, 0)?;
                    nat_rev.insert(reverse, lease, 0)?;
                }
            }
        }
        Ok(())
    }

    /// Opens the table of a protocol's flows.
    fn flows<A: HostAddr>(
        &self,
        protocol: u8,
        family: &str,
    ) -> Result<HashMap<MapData, FlowKey<A>, FlowValue>> {
        let table = if protocol == 6 { "coil_flows" } else { "coil_datagrams" };
        self.pinned(&format!("{table}{family}"))
    }

    /// Opens a pinned table and empties it.
    fn table<K: Pod, V: Pod>(&self, name: &str) -> Result<HashMap<MapData, K, V>> {
        let mut table = self.pinned(name)?;
        let keys: Vec<K> = table.keys().collect::<Result<_, _>>()?;
        for key in keys {
            table.remove(&key)?;
        }
        Ok(table)
    }
}

fn ip(arguments: &str) -> Result<()> {
    let output =
        Command::new("ip").args(arguments.split(' ')).output().context("cannot run ip (package iproute2)")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn mac([a, b, c, d, e, f]: [u8; 6]) -> String {
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

fn make_links() -> Result<()> {
    for sysctl in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{sysctl}"), "1")
            .with_context(|| format!("cannot set {sysctl}"))?;
    }
    let pods = [
        world::CLIENT,
        world::PLAIN,
        world::GATEWAY,
        world::KERNEL_CLIENT,
        world::KERNEL_GATEWAY,
        world::BOTH,
        world::QUEUED,
    ];
    for ifindex in [UPLINK, BESIDE].into_iter().chain(pods) {
        let (host, pod) = (mac(world::host_mac(ifindex)), mac(world::pod_mac(ifindex)));
        let other = ifindex + 100;
        ip(&format!(
            "link add name link{ifindex} index {ifindex} address {host} mtu {} type veth \
             peer name link{other} index {other} address {pod}",
            world::MTU
        )
        .replace("  ", " "))?;
        // The other side stays down: on a link without carrier the kernel sends nothing of its own (neighbour
        // discovery, multicast reports), which the programs would count between the cases.
        ip(&format!("link set link{ifindex} up"))?;
    }
    Ok(())
}

fn make_routes(world: &World, family: &str) -> Result<()> {
    let (node, len) = world.node;
    let nodad = if family == "-6" { " nodad" } else { "" };
    ip(&format!("{family} addr add {node}/{len} dev link{UPLINK}{nodad}"))?;
    for ((net, len), route) in &world.routes {
        match route {
            Route::Via(via) => ip(&format!("{family} route add {net}/{len} via {via}"))?,
            Route::Beside(via) => {
                ip(&format!("{family} route add {via} dev link{BESIDE}"))?;
                ip(&format!("{family} route add {net}/{len} via {via}"))?;
            }
            Route::Blackhole => ip(&format!("{family} route add blackhole {net}/{len}"))?,
        }
    }
    for (addr, ifindex, ..) in &world.pods {
        ip(&format!("{family} route add {addr} dev link{ifindex}"))?;
    }
    Ok(())
}

/// The mark of the programs' own packets.
pub const MARK: u32 = 0x2000;

/// The worlds of both families as the agent states them.
///
/// # Errors
/// When a world states a network that is none.
pub fn desired() -> Result<Desired> {
    let worlds = [World::new(&Net::v4()), World::new(&Net::v6())];
    let mut desired =
        Desired { uplinks: [UPLINK].into(), forward: true, fou_port: 5555, mark: MARK, ..Desired::default() };
    let net = |(addr, len): Prefix| Ok::<_, anyhow::Error>(IpNet::new(addr, len)?);
    for world in &worlds {
        for pool in &world.pools {
            desired.pools.insert(net(*pool)?);
        }
        for (addr, ifindex, role) in &world.pods {
            add_pod(&mut desired, *addr, *ifindex, *role);
        }
        desired.clients.extend(&world.clients);
        for (destination, egress) in &world.policy {
            desired.policies.insert((POLICY, net(*destination)?), *egress);
        }
        for (range, of) in &world.ranges {
            desired.ranges.insert(net(*range)?, *of == cluster_range::CLUSTER);
        }
        desired.all_gateways.extend(&world.strange);
        for (id, gateways, sport_auto) in &world.egresses {
            let egress = desired.egresses.entry(*id).or_insert_with(|| Egress {
                name: format!("test/egress-{id}"),
                gateways: vec![],
                services: vec![],
                sport_auto: *sport_auto,
                affinity: (*id == world::AFFINE).then_some(world::AFFINITY),
                originating_only: *id == world::ORIGINATING,
            });
            let gateway =
                |address: &IpAddr| Gateway { address: *address, ready: !world.leaving.contains(address) };
            egress.gateways.extend(gateways.iter().map(gateway));
            desired.all_gateways.extend(gateways);
            if *id == world::SERVED {
                egress.services.push(world.service);
                desired.all_gateways.insert(world.service);
            }
        }
    }
    Ok(desired)
}

fn add_pod(desired: &mut Desired, addr: IpAddr, ifindex: u32, role: Role) {
    if let Some(pod) = desired.pods.iter_mut().find(|pod| pod.ifindex == ifindex) {
        pod.addresses.push(addr);
        return;
    }
    let queued = role == Role::Queued;
    let (client, kernel_client) =
        (role == Role::Client || queued, matches!(role, Role::KernelClient | Role::Both));
    desired.pods.push(LocalPod {
        name: format!("test/pod-{ifindex}"),
        addresses: vec![addr],
        ifindex,
        mac: world::pod_mac(ifindex),
        host_mac: world::host_mac(ifindex),
        mtu: world::pod_mtu(ifindex),
        policy: if client || kernel_client { POLICY } else { 0 },
        client,
        originating_only: role == Role::Client,
        kernel_client,
        gateway: matches!(role, Role::Gateway | Role::KernelGateway | Role::Both),
        new_clients: role == Role::KernelGateway,
        kernel_gateway: role == Role::KernelGateway,
        by_kernel: queued,
        shaped: false,
    });
}
