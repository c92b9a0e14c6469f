//! Several CPUs want the same translations at once. What goes out is answered, and what is left are whole pairs.
//!
//! ```text
//! thread 0..4, each on a CPU of its own as far as there are: client ── from_pod, or FOU ── from_net ── world
//!                                                            client ── FOU or veth ────── from_net ── world
//! round n: all of them at once, towards port n of the one remote
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{Pod, programs::SchedClassifier};
use coil_agent::datapath::{Desired, monotonic_seconds};
use coil_cases::{
    Given, Net,
    host::HostAddr,
    wire::{self, Ip, tcp},
    world::{self, CLIENT, UPLINK},
};
use coil_kernel_tests::{
    Node, Pins, desired,
    gate::{Gate, pin},
    test_run,
};
use coil_packet::{
    abi::{NatKey, NatRevKey, NatRevValue, NatValue},
    nat::{lendable, points_back, reverse_key},
};

/// More than the CPUs of small machines: some are beside each other, and some behind.
const THREADS: usize = 4;
/// Rounds of one race.
const ROUNDS: u16 = 300;
/// A packet that loses a race is dropped; sent again, it looks for another port. So often at most.
const SENDINGS: usize = 4;
/// `TC_ACT_REDIRECT`.
const SENT: i32 = 7;
/// Longer than any flow may be idle.
const LATER: u32 = 10_000;

/// One race at a time has the CPUs.
static ALONE: Mutex<()> = Mutex::new(());

/// Each runs in both families.
macro_rules! tests {
    ($($name:ident)*) => {
        mod ipv4 {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name::<[u8; 4]>(coil_cases::Net::v4(), "4") })*
        }
        mod ipv6 {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name::<[u8; 16]>(coil_cases::Net::v6(), "6") })*
        }
    };
}

tests! {
    one_flow_of_all_cpus
    one_port_of_all_clients
    two_clients_of_two_cpus_each
    a_quota_holds
    what_has_run_out_while_it_is_swept
}

/// What one thread sends in one round: a TCP connection to the remote's port of the round.
#[derive(Clone, Copy, Debug)]
struct Flow {
    client: IpAddr,
    port: u16,
    remote_port: u16,
}

/// A port that left a gateway, and whose packet had it.
#[derive(Clone, Copy, Debug)]
struct Lent {
    flow: Flow,
    port: u16,
}

/// A client of another node.
fn remote_client(net: &Net, number: usize) -> Result<IpAddr> {
    let number = 20 + u8::try_from(number)?;
    Ok(match net.remote_client {
        IpAddr::V4(of) => [of.octets()[0], of.octets()[1], of.octets()[2], number].into(),
        IpAddr::V6(of) => {
            let [a, b, c, d, e, f, g, _] = of.segments();
            [a, b, c, d, e, f, g, 0x100 | u16::from(number)].into()
        }
    })
}

/// The clients of this node's gateway: one beside it, the others behind the tunnel.
fn clients(net: &Net) -> Result<[IpAddr; THREADS]> {
    Ok([net.client, remote_client(net, 1)?, remote_client(net, 2)?, remote_client(net, 3)?])
}

/// The cases' node with more clients, and a quota.
fn stated(net: &Net, quota: u32) -> Result<Desired> {
    let mut stated = Desired { quota, ..desired()? };
    stated.clients.extend(clients(net)?.map(|client| (net.gateway, client)));
    Ok(stated)
}

fn syn(net: &Net, flow: &Flow) -> (&'static str, u32, Vec<u8>) {
    let header = Ip::new(flow.client, net.world_local);
    let packet = wire::tcp(header, flow.port, flow.remote_port, tcp::SYN, b"");
    let frame =
        |ifindex, packet: &[u8]| wire::ethernet(world::host_mac(ifindex), world::pod_mac(ifindex), packet);
    if flow.client == net.client {
        ("from_pod", CLIENT, frame(CLIENT, &packet))
    } else {
        let tunnelled = wire::fou((flow.client, net.gateway), 0, 5555, &packet);
        ("from_net", UPLINK, frame(UPLINK, &tunnelled))
    }
}

/// The remote's answer to a port of the gateway, and what must become of it.
fn syn_ack(net: &Net, lent: &Lent) -> (Vec<u8>, Vec<u8>) {
    let Lent { flow, port } = lent;
    let packet = |to, ttl, port| {
        let header = Ip::new(net.world_local, to).ttl(ttl);
        wire::tcp(header, flow.remote_port, port, tcp::SYN | tcp::ACK, b"")
    };
    let (arrives, inner) = (packet(net.gateway, 64, *port), packet(flow.client, 63, flow.port));
    let frame = wire::ethernet(world::host_mac(UPLINK), world::ROUTER_MAC, &arrives);
    let near = flow.client == net.client;
    (frame, if near { inner } else { wire::fou((net.gateway, flow.client), 0, 5555, &inner) })
}

/// Whether the remote's answer to what went out has to come to the client.
#[derive(Clone, Copy)]
enum Answers {
    Come,
    /// A lease that is used just when the agent takes it is not there for about a microsecond.
    MayBeLost,
}

/// The programs of one thread.
struct Programs {
    from_pod: SchedClassifier,
    from_net: SchedClassifier,
}

impl Programs {
    /// Sends until it goes out; none when it never does.
    fn send(&self, net: &Net, flow: Flow) -> Result<Option<Lent>> {
        let (program, ingress, frame) = syn(net, &flow);
        let code = if program == "from_pod" { &self.from_pod } else { &self.from_net };
        for _ in 0..SENDINGS {
            let ran = test_run(code, ingress, &frame, 0)?;
            if ran.code == SENT {
                let at = 14 + if net.is_v4() { 20 } else { 40 };
                let port = ran.frame.get(at..at + 2).context("a frame without ports")?;
                return Ok(Some(Lent { flow, port: u16::from_be_bytes([port[0], port[1]]) }));
            }
        }
        Ok(None)
    }

    /// What goes out is answered: the answer comes to who has sent it.
    fn answer(&self, net: &Net, lent: &Lent) -> Result<()> {
        let (frame, wanted) = syn_ack(net, lent);
        let ran = test_run(&self.from_net, UPLINK, &frame, 0)?;
        ensure!(
            ran.code == SENT && ran.frame.get(14..) == Some(&wanted[..]),
            "the answer for {lent:?} ends as {} with {:02x?}",
            ran.code,
            ran.frame
        );
        Ok(())
    }

    /// All rounds of a thread. The answer is how many packets never went out.
    fn run(&self, net: &Net, gate: &Gate, answers: Answers, flows: impl Fn(u16) -> Flow) -> Result<usize> {
        let mut kept = Ok(0);
        for round in 0..ROUNDS {
            // Also who has failed: the others wait for it.
            gate.pass(round);
            if let Ok(before) = kept {
                kept = self.exchange(net, answers, flows(round)).map(|sent| before + usize::from(!sent));
            }
        }
        kept
    }

    /// False when the packet never goes out.
    fn exchange(&self, net: &Net, answers: Answers, flow: Flow) -> Result<bool> {
        let lent = self.send(net, flow)?;
        if let (Some(lent), Answers::Come) = (&lent, answers) {
            self.answer(net, lent)?;
        }
        Ok(lent.is_some())
    }
}

/// All threads send what `flow` says of a thread and a round, while this one does something else, which is told whether
/// they still do. The answer is how many packets never went out.
fn race(
    node: &mut Node,
    net: &Net,
    answers: Answers,
    flow: impl Fn(usize, u16) -> Flow + Sync,
    meanwhile: impl FnOnce(&mut Node, &dyn Fn() -> bool) -> Result<()>,
) -> Result<usize> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut programs = vec![];
    for _ in 0..THREADS {
        programs.push(Programs { from_pod: node.handle("from_pod")?, from_net: node.handle("from_net")? });
    }
    let (gate, flow) = (&Gate::new(THREADS), &flow);
    std::thread::scope(|scope| {
        let run = |(thread, programs): (usize, Programs)| {
            scope.spawn(move || {
                let pinned = pin(thread);
                let kept = programs.run(net, gate, answers, |round| flow(thread, round));
                pinned.and(kept)
            })
        };
        let threads: Vec<_> = programs.into_iter().enumerate().map(run).collect();
        let done = meanwhile(node, &|| threads.iter().any(|thread| !thread.is_finished()));
        let mut kept = 0;
        for thread in threads {
            kept += thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        }
        done.map(|()| kept)
    })
}

/// Leases of each client, after a look at all pairs.
fn look<A: HostAddr + Pod>(node: &Node, family: &str) -> Result<BTreeMap<IpAddr, u32>> {
    let leases = node.pinned::<NatRevKey<A>, NatRevValue<A>>(&format!("coil_nat_rev{family}"))?;
    let translations = node.pinned::<NatKey<A>, NatValue>(&format!("coil_nat{family}"))?;
    let mut paired = BTreeSet::new();
    let mut flows = BTreeSet::new();
    let id = |key: &NatRevKey<A>| (key.protocol, key.remote_port, key.port);
    for entry in translations.iter() {
        let (key, value) = entry?;
        let reverse = reverse_key(&key, value.port);
        let lease = leases.get(&reverse, 0).with_context(|| format!("{key:?} to {value:?} has no lease"))?;
        ensure!(points_back(&lease, &key), "{key:?} to {value:?} has another's lease: {lease:?}");
        ensure!(lendable(value.port), "{key:?} was lent {}", value.port);
        ensure!(paired.insert(id(&reverse)), "two translations have the lease {reverse:?}");
        let client: IpAddr = key.client.into();
        flows.insert((client, key.client_port, key.remote_port));
    }
    let mut by_client = BTreeMap::new();
    for entry in leases.iter() {
        let (key, lease) = entry?;
        ensure!(lendable(key.port), "{key:?} is lent");
        let client: IpAddr = lease.client.into();
        // Two CPUs with one new flow may both be lent a port: the flow goes on with that of the later, and the other's
        // lease runs out.
        ensure!(
            paired.contains(&id(&key)) || flows.contains(&(client, lease.client_port, key.remote_port)),
            "{key:?} is lent for nothing: {lease:?}"
        );
        *by_client.entry(client).or_default() += 1;
    }
    Ok(by_client)
}

/// Looks at all pairs, and takes them back: a lease without its translation goes like any other.
fn end<A: HostAddr + Pod>(node: &mut Node, family: &str, most: usize) -> Result<()> {
    let lent: u32 = look::<A>(node, family)?.values().sum();
    ensure!(lent > 0 && usize::try_from(lent)? <= most, "{lent} leases for {most} flows");
    node.datapath()?.sweep(monotonic_seconds() + LATER)?;
    let left = node.pinned::<NatRevKey<A>, NatRevValue<A>>(&format!("coil_nat_rev{family}"))?.keys().count();
    let translations = node.pinned::<NatKey<A>, NatValue>(&format!("coil_nat{family}"))?.keys().count();
    ensure!((left, translations) == (0, 0), "{left} leases and {translations} translations are left");
    Ok(())
}

/// The client's port in a round: one that it keeps where it can, or one that a gateway never lends.
const fn own_port(round: u16) -> u16 {
    if round.is_multiple_of(2) { 40000 } else { 80 }
}

/// Every thread's flow in every round goes out; `client` says whose it is.
fn all_go_out<A: HostAddr + Pod>(net: Net, family: &str, client: fn(usize, u16) -> usize) -> Result<()> {
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        node.datapath()?.apply(&stated(&net, 0)?)?;
        let clients = clients(&net)?;
        let flow = |thread: usize, round: u16| Flow {
            client: clients[client(thread, round)],
            port: own_port(round),
            remote_port: 1 + round,
        };
        let kept = race(node, &net, Answers::Come, flow, |_, _| Ok(()))?;
        ensure!(kept == 0, "{kept} packets never went out");
        end::<A>(node, family, THREADS * usize::from(ROUNDS))
    })
}

fn one_flow_of_all_cpus<A: HostAddr + Pod>(net: Net, family: &str) -> Result<()> {
    all_go_out::<A>(net, family, |_, round| usize::from(round / 2 % 2))
}

fn one_port_of_all_clients<A: HostAddr + Pod>(net: Net, family: &str) -> Result<()> {
    all_go_out::<A>(net, family, |thread, _| thread)
}

fn two_clients_of_two_cpus_each<A: HostAddr + Pod>(net: Net, family: &str) -> Result<()> {
    all_go_out::<A>(net, family, |thread, _| thread / 2)
}

/// A count that two CPUs change at once may lose one of both: so many more ports than its quota a client may have, until
/// the agent has counted.
fn a_quota_holds<A: HostAddr + Pod>(net: Net, family: &str) -> Result<()> {
    const QUOTA: u32 = 60;
    const LOST: u32 = QUOTA / 10;
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        node.datapath()?.apply(&stated(&net, QUOTA)?)?;
        let clients = clients(&net)?;
        let mut before = BTreeMap::new();
        // What both threads of a client send alike may count twice, until the agent has counted: they get the rest then.
        for (phase, alike, full) in [(0, true, false), (1, false, false), (2, false, true), (3, true, true)] {
            let flow = |thread: usize, round: u16| Flow {
                client: clients[thread % 2],
                port: if alike || thread < 2 { 40000 } else { 40001 },
                remote_port: 1 + phase * ROUNDS + round,
            };
            race(node, &net, Answers::Come, flow, |_, _| Ok(()))?;
            let has = look::<A>(node, family)?;
            ensure!(has.values().all(|has| *has <= QUOTA + LOST), "{has:?} of {QUOTA} ports");
            let grown =
                has.iter().any(|(client, has)| *has > QUOTA.max(before.get(client).copied().unwrap_or(0)));
            ensure!(!full || !grown, "{has:?} of {QUOTA} ports, after {before:?}");
            node.datapath()?.sweep(monotonic_seconds())?;
            before = has;
        }
        let all = before.len() == 2 && before.values().all(|has| *has >= QUOTA);
        ensure!(all, "{before:?} of {QUOTA} ports: less than a client may have");
        end::<A>(node, family, usize::MAX)
    })
}

/// Flows begin anew whose leases have run out, and others want their ports, while the agent takes them back.
fn what_has_run_out_while_it_is_swept<A: HostAddr + Pod>(net: Net, family: &str) -> Result<()> {
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        node.datapath()?.apply(&stated(&net, 0)?)?;
        let clients = clients(&net)?;
        let given: Vec<_> = (0..ROUNDS)
            .map(|round| Given::Nat {
                protocol: 6,
                gateway: (net.gateway, 40000),
                client: (clients[0], 40000),
                remote: (net.world_local, 1 + round),
                idle: 241,
            })
            .collect();
        node.begin(&net, &given)?;
        let flow = |thread: usize, round: u16| Flow {
            client: clients[thread / 2],
            port: 40000,
            remote_port: 1 + round,
        };
        let (mut sweeps, mut taken) = (0, 0);
        let kept = race(node, &net, Answers::MayBeLost, flow, |node, racing| {
            while racing() {
                sweeps += 1;
                taken += node.datapath()?.sweep(monotonic_seconds())?.translations;
            }
            Ok(())
        })?;
        ensure!(kept == 0, "{kept} packets never went out");
        ensure!(sweeps > 1 && taken > 0, "{sweeps} sweeps took {taken} leases: not at the same time");
        // A translation whose port another was lent meanwhile counts for nothing, and goes at the next sweep.
        node.datapath()?.sweep(monotonic_seconds())?;
        end::<A>(node, family, THREADS * usize::from(ROUNDS))
    })
}
