//! The network between the namespaces, before any program runs.
//!
//! ```text
//!   node1   node2   node3   control   world          172.18.0.{1,2,3,10,254}/24
//!     │eth0   │eth0   │eth0    │eth0     │eth0       fd00:18::{1,2,3,a,fe}/64
//!   ──┴───────┴───────┴────────┴─────────┴──  bridge lan in fabric
//!                                         │└ lo       198.51.100.9, 2001:db8:9::9
//!                                         │far, MTU 1280
//!                                         └── far     192.0.2.2, 2001:db8:fa::2
//! ```
//!
//! The world is the nodes' default router. It answers only sources that it has a route to, as a
//! provider's edge does: a pod's own address gets no answer and reaches no server.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use coil_netns::NetNs;

use crate::{
    config::{CONTROL, FABRIC, FAR, FAR_MTU, Family, Ip, LAN_MTU, Options, WORLD, WORLD_HOST},
    place::{self, OpenPlace},
    state::StateDir,
};

/// The places of a lab by name, [`FABRIC`] included.
pub(crate) type OpenPlaces = BTreeMap<String, OpenPlace>;

/// Makes all namespaces and wires. The caller is in the lab's mount namespace.
pub(crate) fn build(options: &Options, state: &StateDir) -> Result<OpenPlaces> {
    let dir = state.netns();
    place::mount_fs("tmpfs", &dir, Some("mode=0755"))?;
    let fabric = NetNs::create(dir.join(FABRIC))?;
    inside(&fabric, || sysctl("net/ipv6/conf/default/disable_ipv6", "1"))?;
    let mtu = options.mtu;
    batch(&fabric, &[], &format!("link add lan type bridge\nlink set lan mtu {mtu} up\n"))?;
    let own = OpenPlace::own()?;
    let mut places = OpenPlaces::from([(FABRIC.to_owned(), own.with_net(File::open(fabric.path())?))]);
    for (name, host) in options.members() {
        let ns = NetNs::create(dir.join(&name))?;
        inside(&ns, || member_sysctls(&name))?;
        batch(
            &fabric,
            &[],
            &format!(
                "link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\nlink set {name} master lan up\n",
                ns.path().display()
            ),
        )?;
        batch(&ns, &[], &member_links(&name, host, options.family))?;
        if name == WORLD && options.family.each().contains(&Ip::V6) {
            batch(&ns, &["-6"], &world_rules())?;
        }
        let place = own.with_net(File::open(ns.path())?);
        let place = place.with_own_mounts(|| furnish(state, &name))?;
        places.insert(name, place);
    }
    let far = NetNs::create(dir.join(FAR))?;
    let world = NetNs::open(dir.join(WORLD))?;
    inside(&far, || member_sysctls(FAR))?;
    batch(&world, &[], &far_wire(&far, options.family))?;
    batch(&far, &[], &far_links(options.family))?;
    places.insert(FAR.to_owned(), own.with_net(File::open(far.path())?));
    Ok(places)
}

/// The `ip -batch` lines that make the wire to [`FAR`], in the world.
fn far_wire(far: &NetNs, family: Family) -> String {
    use std::fmt::Write as _;
    let mut lines = format!(
        "link add far mtu {FAR_MTU} type veth peer name eth0 mtu {FAR_MTU} netns {}\nlink set far up\n",
        far.path().display()
    );
    for ip in family.each() {
        let _ = writeln!(lines, "addr add {} dev far{}", ip.far(1), nodad(*ip));
    }
    lines
}

/// Those that configure [`FAR`] itself.
fn far_links(family: Family) -> String {
    use std::fmt::Write as _;
    let mut lines = String::from("link set lo up\nlink set eth0 up\n");
    for ip in family.each() {
        let _ = writeln!(lines, "addr add {} dev eth0{}", ip.far(2), nodad(*ip));
        // It asks for segments of 1500 bytes, as a host does that is behind the narrow link and not on it.
        let advmss = LAN_MTU - if *ip == Ip::V6 { 60 } else { 40 };
        let _ = writeln!(lines, "route add default via {} dev eth0 advmss {advmss}", ip.far(1).addr());
    }
    lines
}

fn nodad(ip: Ip) -> &'static str {
    if ip == Ip::V6 { " nodad" } else { "" }
}

fn member_sysctls(name: &str) -> Result<()> {
    // Forwarding first: setting it resets others to a router's defaults.
    sysctl("net/ipv4/ip_forward", "1")?;
    sysctl("net/ipv6/conf/all/forwarding", "1")?;
    let strict = if name == WORLD { "1" } else { "0" };
    for which in ["all", "default"] {
        sysctl(&format!("net/ipv4/conf/{which}/rp_filter"), strict)?;
        sysctl(&format!("net/ipv6/conf/{which}/accept_dad"), "0")?;
        sysctl(&format!("net/ipv6/conf/{which}/accept_ra"), "0")?;
        sysctl(&format!("net/ipv6/conf/{which}/disable_ipv6"), "0")?;
    }
    Ok(())
}

/// The `ip -batch` lines that configure a member of the LAN.
fn member_links(name: &str, host: u8, family: Family) -> String {
    use std::fmt::Write as _;
    let mut lines = String::from("link set lo up\nlink set eth0 up\n");
    for ip in family.each() {
        let nodad = nodad(*ip);
        let _ = writeln!(lines, "addr add {} dev eth0{nodad}", ip.lan(host));
        if name == WORLD {
            let _ = writeln!(lines, "addr add {} dev lo{nodad}", ip.world());
        } else {
            let _ = writeln!(lines, "route add default via {} dev eth0", ip.lan(WORLD_HOST).addr());
        }
    }
    lines
}

/// IPv6 has no rp_filter: the world's rules say the same. They must come before the table of local
/// addresses, so that one moves.
fn world_rules() -> String {
    format!(
        "rule add pref 30 lookup local\nrule del pref 0\nrule add pref 10 from {} lookup local\n\
         rule add pref 20 iif eth0 from fc00::/7 blackhole\n",
        Ip::V6.lan(0).trunc()
    )
}

/// What a member's own mount namespace holds. Nodes get a `/run`, where sockets and the
/// namespaces of pods live, and a BPF file system for pinned programs.
fn furnish(state: &StateDir, name: &str) -> Result<()> {
    // sysfs shows the links of the network namespace it was mounted from.
    place::mount_fs("sysfs", Path::new("/sys"), None)?;
    if name == CONTROL || name == WORLD {
        return Ok(());
    }
    place::mount_fs("bpf", Path::new("/sys/fs/bpf"), None)?;
    let keep = File::open(state.path()).context("cannot open the lab's directory")?;
    place::mount_fs("tmpfs", Path::new("/run"), Some("mode=0755"))?;
    std::fs::create_dir_all("/run/netns").context("cannot make /run/netns")?;
    // The lab's directory lies below /run too: the node's kubelet writes to it.
    let source = format!("/proc/thread-self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&keep));
    place::bind(Path::new(&source), state.path())
}

/// Writes a kernel setting of the caller's namespaces.
pub(crate) fn sysctl(key: &str, value: &str) -> Result<()> {
    std::fs::write(Path::new("/proc/sys").join(key), value)
        .with_context(|| format!("cannot set {key} to {value}"))
}

fn inside<T: Send>(ns: &NetNs, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    ns.run(work)?
}

/// Runs `ip -batch` inside a namespace; the first line that fails ends it.
fn batch(ns: &NetNs, flags: &[&str], lines: &str) -> Result<()> {
    let place = OpenPlace::own()?.with_net(File::open(ns.path())?);
    run_batch(place.command("ip").args(flags), lines)
        .with_context(|| format!("namespace {}", ns.path().display()))
}

pub(crate) fn run_batch(ip: &mut Command, lines: &str) -> Result<()> {
    let mut child = ip
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip (package iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes()).context("cannot write to ip")?;
    }
    let output = child.wait_with_output().context("ip did not end")?;
    ensure!(
        output.status.success(),
        "ip -batch failed: {}\nits input was:\n{lines}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_family_leaves_no_trace_of_the_other() {
        for name in ["node1", WORLD] {
            let v4 = member_links(name, 1, Family::V4);
            assert!(!v4.contains("fd00:18") && !v4.contains("-6"), "{v4}");
            let v6 = member_links(name, 1, Family::V6);
            assert!(!v6.contains("172.18"), "{v6}");
        }
    }

    #[test]
    fn nodes_route_through_the_world() {
        let node = member_links("node1", 1, Family::Dual);
        assert!(node.contains("route add default via 172.18.0.254 dev eth0"), "{node}");
        assert!(node.contains("route add default via fd00:18::fe dev eth0"), "{node}");
        assert!(!member_links(WORLD, WORLD_HOST, Family::Dual).contains("default"));
    }
}
