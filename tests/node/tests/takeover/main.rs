//! A node that the Go version of Coil has made is taken over: nothing is lost, nothing gets another address, and
//! connections go on.
//!
//! ```text
//!   client ── eth0 ── veth, alias COIL:dual:ID:eth0 ──┐
//!     fou4_…, fou6_…, tables 117 and 118              ├── tables 116 and 119 ── uplink ── peer
//!   server ── eth0 ── veth, alias COIL:dual:ID:eth0 ──┘
//! ```
//!
//! Where the kernel has no FOU, links of another kind bear the names of the client's tunnels: the names are what they are
//! known by. `cargo xtask vm --only takeover` runs the same on kernels that have it.

mod go;

use std::{
    collections::BTreeSet,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use coil_node_tests::{Cluster, Plugin, Programs, Sandbox, place::ip, runtime::addresses};
use serde_json::json;

use go::{Go, SERVICES};

/// Turns of an echo, 20 ms apart: longer than coild takes to take over.
fn turns() -> &'static str {
    // Where the machine is emulated, coild takes a minute to start.
    if coil_traffic::machine::is_emulated() {
        "--times 4000 --pause 20 --bytes 1000 --timeout 20"
    } else {
        "--times 400 --pause 20 --bytes 1000 --timeout 10"
    }
}

/// The traffic tool in a pod.
fn traffic(cluster: &Cluster, pod: &Sandbox, words: &str) -> Result<Child> {
    let tool = cluster.programs.coild.with_file_name("coil-traffic");
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &pod.netns_name()]).arg(&tool).args(words.split(' '));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().with_context(|| format!("cannot run {}", tool.display()))
}

/// All that a pod's namespace holds of links, addresses, rules and routes.
fn inside(pod: &Sandbox) -> Result<Vec<String>> {
    let netns = pod.netns_name();
    let mut lines = Vec::new();
    for what in ["-br link", "-br addr", "rule", "-6 rule", "route show table all", "-6 route show table all"]
    {
        lines.extend(ip(&format!("-n {netns} {what}"))?.lines().map(str::to_owned));
    }
    Ok(lines)
}

/// What the node itself holds: links with their aliases, addresses of links, rules, and the tables of pods and blocks.
fn node() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let links: Vec<serde_json::Value> = serde_json::from_str(&ip("-j link show type veth")?)?;
    for link in links {
        lines.push(format!("{} {} mtu {} {}", link["ifindex"], link["ifname"], link["mtu"], link["ifalias"]));
    }
    lines.extend(ip("-br addr")?.lines().map(str::to_owned));
    for family in ["-4", "-6"] {
        for table in [116, 119] {
            lines.extend(ip(&format!("{family} route show table {table}"))?.lines().map(str::to_owned));
        }
        lines.extend(ip(&format!("{family} rule show"))?.lines().map(str::to_owned));
    }
    Ok(lines)
}

fn unchanged(what: &str, before: &[String], after: &[String]) -> Result<()> {
    let lost: Vec<&String> = before.iter().filter(|line| !after.contains(line)).collect();
    let new: Vec<&String> = after.iter().filter(|line| !before.contains(line)).collect();
    ensure!(lost.is_empty() && new.is_empty(), "{what}: lost {lost:#?}, new {new:#?}");
    Ok(())
}

/// How many packets the peer has seen in UDP port 5555.
fn tunnelled() -> Result<u64> {
    let output = Command::new("ip")
        .args(["netns", "exec", "peer", "nft", "-j", "list", "table", "inet", "seen"])
        .output()
        .context("cannot run nft")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let table: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("nft says {text:?}"))?;
    let objects = table["nftables"].as_array().cloned().unwrap_or_default();
    let counters = objects.iter().filter_map(|object| object["counter"]["packets"].as_u64());
    Ok(counters.sum())
}

/// A datagram as a tunnel sends it, from the client to the Service of its Egress.
fn send_to_service(pod: &Sandbox) -> Result<()> {
    for service in SERVICES {
        let send = format!("echo x > /dev/udp/{service}/5555");
        let sent =
            Command::new("ip").args(["netns", "exec", &pod.netns_name(), "bash", "-c", &send]).output();
        let sent = sent.context("cannot run bash")?;
        ensure!(sent.status.success(), "{send}: {}", String::from_utf8_lossy(&sent.stderr));
    }
    Ok(())
}

#[test]
fn a_node_of_the_go_version_is_taken_over() -> Result<()> {
    Cluster::run(Programs::beside_tests()?, &[], async |mut cluster| {
        let plugin = Plugin {
            path: cluster.programs.plugin.clone(),
            config: json!({"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "coil", "socket": cluster.socket()}),
        };
        let go = Go::take_node(&mut cluster).await?;
        let server = go.pod(&cluster, "server", 0).await?;
        let client = go.pod(&cluster, "client", 1).await?;
        go.make_client(&client, 1)?;

        let mut serving = traffic(&cluster, &server, "serve 5001")?;
        let listening = async || {
            let sockets =
                Command::new("ip").args(["netns", "exec", &server.netns_name(), "ss", "-Hltn"]).output()?;
            Ok((!String::from_utf8_lossy(&sockets.stdout).contains(":5002"))
                .then(|| "nothing listens".to_owned()))
        };
        cluster.wait_for("the server", listening).await?;
        let mut running = Vec::new();
        // The kernel stops a link's queue while it gets its first programs: TCP sends again what that costs.
        for address in Go::addresses(0) {
            let to = std::net::SocketAddr::new(address, 5002);
            running.push((to, traffic(&cluster, &client, &format!("tcp-echo {} {to}", turns()))?));
        }
        let open = async || {
            let sockets =
                Command::new("ip").args(["netns", "exec", &client.netns_name(), "ss", "-Htn"]).output()?;
            let open = String::from_utf8_lossy(&sockets.stdout).matches("ESTAB").count();
            Ok((open < 2).then(|| format!("{open} are open")))
        };
        cluster.wait_for("the connections", open).await?;
        let before = (node()?, inside(&server)?, inside(&client)?, cluster.blocks().await?);

        cluster.start_coild().await?;
        cluster.until_in_charge().await?;
        for (what, flow) in &mut running {
            ensure!(flow.try_wait()?.is_none(), "{what} ended before coild had taken over");
        }
        unchanged("the node", &before.0, &node()?)?;
        unchanged("the server", &before.1, &inside(&server)?)?;
        unchanged("the client", &before.2, &inside(&client)?)?;
        ensure!(cluster.blocks().await? == before.3, "the blocks have become {:?}", cluster.blocks().await?);

        // The client's tunnels go where they went.
        let seen = tunnelled()?;
        send_to_service(&client)?;
        go.use_tunnels(&client)?;
        let check = async || {
            let now = tunnelled()? - seen;
            Ok((now < go.expected()).then(|| format!("{now} of {} were seen", go.expected())))
        };
        cluster.wait_for("the client's tunnelled packets", check).await?;

        // Its routes follow the Egress, through the links that it has, and nothing else of it changes.
        let (grown, as_before) = (["198.51.100.0/24", "10.20.0.0/16", "2001:db8:100::/64"], before.2.clone());
        go::lead_to(&cluster, &grown).await?;
        let followed = async || {
            let now = inside(&client)?;
            let missing = grown
                .iter()
                .zip(["fou4_0a600707", "fou4_0a600707", "fou6_256d826a"])
                .find(|(net, link)| !now.iter().any(|line| line.starts_with(&format!("{net} dev {link} "))));
            Ok(missing.map(|(net, _)| format!("no route to {net} in {now:#?}")))
        };
        cluster.wait_for("routes to what the Egress leads to now", followed).await?;
        let now: BTreeSet<String> = inside(&client)?.into_iter().collect();
        let new: Vec<&String> = now.iter().filter(|line| !as_before.contains(line)).collect();
        ensure!(new.len() == grown.len() && !new.iter().any(|line| line.contains("unreachable")), "{new:#?}");
        go::lead_to(&cluster, &[]).await?;
        let same =
            async || Ok(unchanged("the client", &as_before, &inside(&client)?).err().map(|e| e.to_string()));
        cluster.wait_for("the routes of before", same).await?;

        // A new pod gets what is free in the block that the node has, and reaches the old ones.
        let uid = cluster.create_pod("dual", "new").await?;
        let new = Sandbox::new("dual", "new", &uid)?;
        tokio::time::sleep(coil_node_tests::cluster::WATCH_DELAY).await;
        let given: BTreeSet<String> = addresses(&new.call(&plugin, "ADD")?).into_iter().collect();
        for n in 0..2 {
            for address in Go::addresses(n) {
                let own = format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
                ensure!(!given.contains(&own), "{own} is given twice");
            }
        }
        ensure!(
            cluster.blocks().await? == before.3,
            "one more pod took the node to {:?}",
            cluster.blocks().await?
        );
        for address in Go::addresses(0) {
            ip(&format!("netns exec {} ping -c 1 -W 5 {address}", new.netns_name()))?;
        }
        for (what, flow) in running {
            let output = flow.wait_with_output()?;
            let said = [output.stdout, output.stderr].concat();
            ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&said));
        }
        serving.kill()?;
        serving.wait()?;
        // Nor did anything change later.
        unchanged("the server", &before.1, &inside(&server)?)?;
        unchanged("the client", &before.2, &inside(&client)?)?;

        // They end as all others do.
        for pod in [server, client, new] {
            let name = pod.name.clone();
            pod.call(&plugin, "DEL")?;
            pod.remove()?;
            cluster.delete_pod("dual", &name).await?;
        }
        let gone = async || {
            let (blocks, links) = (cluster.blocks().await?, ip("-o link show type veth")?.lines().count());
            Ok((!blocks.is_empty() || links != 1).then(|| format!("{blocks:?}, {links} links")))
        };
        cluster.wait_for("nothing of the pods to be left", gone).await
    })
}
