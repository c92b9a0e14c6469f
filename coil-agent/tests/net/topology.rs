//! A node and its pods as network namespaces of this machine.
//!
//! ```text
//!   pods                        node                          peer
//!  ┌──────┐                    ┌──────────────────────────┐   ┌────────┐
//!  │ eth0 ├─── made by Coil ───┤ veth…             uplink ├───┤ uplink │
//!  └──────┘                    │ 172.18.0.1, fd00:18::1   │   └────────┘
//!                              └──────────────────────────┘
//! ```
//!
//! Tests run on a thread inside the node's namespace, as coild does.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use coil_agent::{
    ipam::{Allocation, AttachmentId},
    net::{
        Rtnl,
        host::{self, HostAddresses},
        name::PodIdentity,
        pod::PodNetwork,
        route::Owned,
    },
};
use coil_netns::NetNs;

/// Where coild looks for the namespaces of pods after a restart.
const DIR: &str = "/run/netns";
pub(crate) const POD_TABLE: Owned = Owned { table: 116, protocol: 30 };
pub(crate) const NODE_V4: &str = "172.18.0.1";
pub(crate) const NODE_V6: &str = "fd00:18::1";

static NEXT: AtomicU32 = AtomicU32::new(0);
static SHARED: Once = Once::new();

/// Makes what is mounted in [`DIR`] seen by programs that have mounts of their own, which it is not on every machine: `ip` does
/// so with its first namespace.
fn share_dir() {
    let name = format!("coil-{}-first", std::process::id());
    for verb in ["add", "del"] {
        let output = Command::new("ip").args(["netns", verb, &name]).output().unwrap();
        assert!(output.status.success(), "ip netns {verb}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A namespace that goes with the test.
pub(crate) struct TestNs(pub(crate) NetNs);

impl TestNs {
    pub(crate) fn new(label: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
        SHARED.call_once(share_dir);
        let unique = format!("coil-{}-{}-{label}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let ns = NetNs::create(Path::new(DIR).join(unique)).unwrap();
        let this = Self(ns);
        this.ip("link set lo up");
        this
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    /// Runs `ip` inside; returns what it prints.
    pub(crate) fn ip(&self, args: &str) -> String {
        let output =
            self.0.run(|| Command::new("ip").args(args.split_whitespace()).output()).unwrap().unwrap();
        assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Whether a TCP connection from here to a listener in `to` comes about at once.
    pub(crate) fn reaches(&self, to: &Self, address: IpAddr) -> bool {
        let listener = to.0.run(|| TcpListener::bind(SocketAddr::new(address, 0))).unwrap().unwrap();
        let target = listener.local_addr().unwrap();
        self.0.run(|| TcpStream::connect_timeout(&target, Duration::from_millis(900)).is_ok()).unwrap()
    }
}

impl Drop for TestNs {
    fn drop(&mut self) {
        let _ = NetNs::remove(self.0.path());
    }
}

/// A node, prepared as coild does it.
pub(crate) struct Topology {
    pub(crate) node: TestNs,
    /// Keeps the other end of the uplink.
    _peer: TestNs,
}

impl Topology {
    pub(crate) fn new() -> Self {
        let node = TestNs::new("node");
        let peer = TestNs::new("peer");
        let name = peer.path();
        let name = name.file_name().unwrap().to_str().unwrap();
        node.ip(&format!("link add uplink type veth peer name uplink netns {name}"));
        node.ip(&format!("addr add {NODE_V4}/24 dev uplink"));
        node.ip(&format!("addr add {NODE_V6}/64 dev uplink nodad"));
        node.ip("link set uplink mtu 1400 up");
        peer.ip("link set uplink up");
        node.ip("route add default via 172.18.0.2");
        Self { node, _peer: peer }
    }

    /// Runs a test inside the node's namespace.
    pub(crate) fn run<F: Future<Output = ()>>(&self, test: impl FnOnce(PodNetwork, Rtnl) -> F + Send) {
        self.node
            .0
            .run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let rtnl = Rtnl::open().unwrap();
                    host::prepare(&rtnl, POD_TABLE.table, 2000).await.unwrap();
                    let addresses = [NODE_V4.parse().unwrap(), NODE_V6.parse().unwrap()];
                    let mtu = host::mtu(&rtnl).await.unwrap();
                    let host = HostAddresses::of(&addresses);
                    test(PodNetwork::new(rtnl.clone(), POD_TABLE, host, mtu), rtnl).await;
                });
            })
            .unwrap();
    }
}

/// A pod of the namespace `default`.
pub(crate) fn identity(uid: &str) -> PodIdentity {
    let network = "k8s-pod-network".into();
    PodIdentity { namespace: "default".into(), name: format!("pod-{uid}"), uid: uid.into(), network }
}

/// What a pool gave.
pub(crate) fn allocation(container: &str, ipv4: Option<&str>, ipv6: Option<&str>) -> Allocation {
    Allocation {
        pool: "default".into(),
        owner: AttachmentId { container_id: container.into(), ifname: "eth0".into() },
        ipv4: ipv4.map(|a| a.parse().unwrap()),
        ipv6: ipv6.map(|a| a.parse().unwrap()),
    }
}
