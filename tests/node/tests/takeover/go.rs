//! A node as the Go version of Coil leaves it: block, tables, links, and a client's tunnels.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use coil_api::{
    crd::{AddressBlock, AddressPool, Egress},
    names::{
        ANN_EGRESS_PREFIX, APP_NAME, COMPONENT_EGRESS, FINALIZER, LABEL_APP_COMPONENT, LABEL_APP_INSTANCE,
        LABEL_APP_NAME, LABEL_NODE, LABEL_POOL,
    },
};
use coil_node_tests::{
    Cluster, Sandbox,
    cluster::NODE,
    place::{NODE_V4, NODE_V6, ip},
};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// The pool, which is the namespace of its pods, too.
const POOL: &str = "dual";
/// Its first block.
const BLOCK: [&str; 2] = ["10.65.0.0/26", "fd65::/122"];
/// Addresses of the Service of the client's Egress.
pub(super) const SERVICES: [&str; 2] = ["10.96.7.7", "fd96::7"];
/// What the Egress leads to.
const WORLD: [&str; 2] = ["9.9.9.9", "2606:4700:4700::9999"];

pub(super) struct Go {
    /// The kernel has FOU, and the client's tunnels are real.
    real: bool,
}

impl Go {
    /// The addresses of the n-th pod.
    pub(super) fn addresses(n: u8) -> [IpAddr; 2] {
        [Ipv4Addr::new(10, 65, 0, n).into(), Ipv6Addr::new(0xfd65, 0, 0, 0, 0, 0, 0, n.into()).into()]
    }

    /// Ends coild, takes what it made on the empty node, and makes the node the Go version's.
    pub(super) async fn take_node(cluster: &mut Cluster) -> Result<Self> {
        cluster.stop_coild()?;
        let left = Command::new(&cluster.programs.coild).arg("--cleanup").output()?;
        ensure!(left.status.success(), "{}", String::from_utf8_lossy(&left.stderr));
        for (family, [block, _]) in [("-4", BLOCK), ("-6", [BLOCK[1], ""])] {
            ip(&format!("{family} rule del priority 2000"))?;
            ip(&format!("{family} rule add priority 2000 lookup 116"))?;
            ip(&format!("{family} route add {block} dev lo proto 30 table 119"))?;
        }
        for line in [
            "-n peer addr add 172.18.0.2/24 dev uplink",
            "-n peer addr add fd00:18::2/64 dev uplink nodad",
            "netns exec peer nft add table inet seen",
            "netns exec peer nft add counter inet seen fou",
            "netns exec peer nft add chain inet seen arriving { type filter hook prerouting priority 0 ; }",
            "netns exec peer nft add rule inet seen arriving udp dport 5555 counter name fou",
        ] {
            ip(line)?;
        }
        // New links have their own addresses at once.
        without_dad("")?;
        populate(cluster).await.context("cannot make the objects")?;
        // A namespace of its own tells it, and is gone at once.
        ip("netns add probe")?;
        let real = ip("-n probe fou add port 5555 ipproto 4").is_ok();
        ip("netns del probe")?;
        Ok(Self { real })
    }

    /// Connects a pod.
    pub(super) async fn pod(&self, cluster: &Cluster, name: &str, n: u8) -> Result<Sandbox> {
        let api: Api<Pod> = Api::namespaced(cluster.client(), POOL);
        let mut annotations = json!({});
        if name == "client" {
            annotations[format!("{ANN_EGRESS_PREFIX}{POOL}")] = "nat".into();
        }
        let pod = json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"nodeName": NODE, "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "c", "image": "c"}]},
        });
        let pod = api.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        let own = Self::addresses(n);
        let status = json!({"status": {"phase": "Running", "podIP": own[0],
            "podIPs": [{"ip": own[0]}, {"ip": own[1]}]}});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
        let sandbox = Sandbox::new(POOL, name, &pod.uid().context("a pod without a UID")?)?;
        without_dad(&sandbox.netns_name())?;
        connect(&sandbox, n, own)?;
        Ok(sandbox)
    }

    /// Makes a pod a client, as the Go version's `founat` does.
    pub(super) fn make_client(&self, pod: &Sandbox, n: u8) -> Result<()> {
        let netns = pod.netns_name();
        let [v4, v6] = Self::addresses(n);
        // Of the bytes of 10.96.7.7, and of the first four bytes of the SHA-1 of those of fd96::7.
        let names = ["fou4_0a600707", "fou6_256d826a"];
        let links: Vec<String> = if self.real {
            vec![
                "fou add port 5555 ipproto 4".into(),
                "fou add port 5555 ipproto 41 -6".into(),
                format!(
                    "link add {} type ipip local {v4} remote {} ttl 225 encap fou encap-sport 5555 encap-dport 5555",
                    names[0], SERVICES[0]
                ),
                format!(
                    "link add {} type ip6tnl mode ip6ip6 local {v6} remote {} hoplimit 225 encaplimit 0 encap fou \
                     encap-sport 5555 encap-dport 5555 noencap-udp6-csum",
                    names[1], SERVICES[1]
                ),
                "link add coil_ipip4 type ipip external".into(),
                "link add coil_ipip6 type ip6tnl external".into(),
                "link set coil_ipip4 up".into(),
                "link set coil_ipip6 up".into(),
            ]
        } else {
            names.iter().map(|name| format!("link add {name} type bridge")).collect()
        };
        for line in links {
            ip(&format!("-n {netns} {line}"))?;
        }
        for (family, name, world, local, private) in [
            ("-4", names[0], WORLD[0], "169.254.0.0/16", "10.0.0.0/8"),
            ("-6", names[1], WORLD[1], "fe80::/10", "fc00::/7"),
        ] {
            for line in [
                format!("link set {name} up"),
                format!("{family} rule add to {local} lookup main priority 1800 protocol 30"),
                format!("{family} rule add lookup 117 priority 1900 protocol 30"),
                format!("{family} rule add to {private} lookup main priority 2000 protocol 30"),
                format!("{family} rule add lookup 118 priority 2100 protocol 30"),
                format!("{family} route add {world} dev {name} table 118 protocol 30"),
            ] {
                ip(&format!("-n {netns} {line}"))?;
            }
        }
        Ok(())
    }

    /// Sends to the world through real tunnels.
    pub(super) fn use_tunnels(&self, pod: &Sandbox) -> Result<()> {
        if self.real {
            for world in WORLD {
                // Nobody answers.
                let asked = ip(&format!("netns exec {} ping -c 1 -W 1 {world}", pod.netns_name()));
                ensure!(asked.is_err(), "{world} answers");
            }
        }
        Ok(())
    }

    /// How many tunnelled packets leave the node, at least.
    pub(super) fn expected(&self) -> u64 {
        if self.real { 4 } else { 2 }
    }
}

/// Makes the Egress lead to the world, and to `more`.
pub(super) async fn lead_to(cluster: &Cluster, more: &[&str]) -> Result<()> {
    let world = WORLD.map(|world| format!("{world}/{}", if world.contains(':') { 128 } else { 32 }));
    let all: Vec<&str> = world.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let patch = json!({"spec": {"destinations": all}});
    let api: Api<Egress> = Api::namespaced(cluster.client(), POOL);
    api.patch("nat", &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// Addresses of links that are made later in a namespace, or in the node's, wait for nobody.
fn without_dad(netns: &str) -> Result<()> {
    for which in ["all", "default"] {
        let setting = format!("net.ipv6.conf.{which}.accept_dad=0");
        let mut command = match netns {
            "" => Command::new("sysctl"),
            netns => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", netns, "sysctl"]);
                command
            }
        };
        let done = command.args(["-q", "-w", &setting]).output().context("cannot run sysctl")?;
        ensure!(done.status.success(), "{setting}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}

/// The pair, its addresses and routes.
fn connect(pod: &Sandbox, n: u8, [v4, v6]: [IpAddr; 2]) -> Result<()> {
    let (netns, link) = (pod.netns_name(), format!("veth5eed000{n}"));
    let alias = format!("COIL:{POOL}:{}:eth0", pod.container_id());
    for line in [
        format!("link add {link} mtu 1500 type veth peer name eth0 mtu 1500 netns {netns}"),
        format!("link set {link} up alias {alias}"),
        format!("-n {netns} link set lo up"),
        format!("-n {netns} link set eth0 up"),
        format!("-n {netns} addr add {v4}/32 dev eth0"),
        format!("-n {netns} addr add {v6}/128 dev eth0 nodad"),
        format!("addr add {NODE_V4}/32 dev {link}"),
        format!("addr add {NODE_V6}/128 dev {link} nodad"),
        format!("route add {v4} dev {link} scope link proto 30 table 116"),
        format!("-6 route add {v6} dev {link} proto 30 table 116"),
        format!("-n {netns} route add {NODE_V4} dev eth0 scope link"),
        format!("-n {netns} route add default via {NODE_V4}"),
    ] {
        ip(&line)?;
    }
    let addresses: Value = serde_json::from_str(&ip(&format!("-j -6 addr show dev {link} scope link"))?)?;
    // The first of a list is empty where others are left out.
    let own = addresses.as_array().into_iter().flatten().flat_map(|link| link["addr_info"].as_array());
    let local = own.flatten().find_map(|address| address["local"].as_str());
    let local = local.with_context(|| format!("{link} has no link-local address"))?;
    ip(&format!("-n {netns} -6 route add default via {local} dev eth0"))?;
    Ok(())
}

/// The block of the node, and the Egress with its Service.
async fn populate(cluster: &Cluster) -> Result<()> {
    let client = cluster.client();
    let pool = Api::<AddressPool>::all(client.clone()).get(POOL).await?;
    let mut owner = pool.controller_owner_ref(&()).context("the pool has no UID")?;
    owner.block_owner_deletion = Some(true);
    let block: AddressBlock = serde_json::from_value(json!({
        "apiVersion": AddressBlock::api_version(&()), "kind": AddressBlock::kind(&()),
        "metadata": {
            "name": format!("{POOL}-0"), "finalizers": [FINALIZER], "ownerReferences": [owner],
            "labels": {LABEL_POOL: POOL, LABEL_NODE: NODE},
        },
        "index": 0, "ipv4": BLOCK[0], "ipv6": BLOCK[1],
    }))?;
    Api::all(client.clone()).create(&PostParams::default(), &block).await?;
    let egress: Egress = serde_json::from_value(json!({
        "apiVersion": Egress::api_version(&()), "kind": Egress::kind(&()), "metadata": {"name": "nat"},
        "spec": {"destinations": WORLD.map(|world| format!("{world}/{}", if world.contains(':') { 128 } else { 32 }))},
    }))?;
    Api::namespaced(client.clone(), POOL).create(&PostParams::default(), &egress).await?;
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "nat", "labels": {
            LABEL_APP_NAME: APP_NAME, LABEL_APP_COMPONENT: COMPONENT_EGRESS, LABEL_APP_INSTANCE: "nat",
        }},
        "spec": {"clusterIP": SERVICES[0], "clusterIPs": SERVICES, "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 5555, "protocol": "UDP"}]},
    }))?;
    Api::namespaced(client, POOL).create(&PostParams::default(), &service).await?;
    Ok(())
}
