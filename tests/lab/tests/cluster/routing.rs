//! Pods with routed addresses and the world, in each family; the path's MTU; and BIRD instead of coil-router.

use anyhow::{Context as _, Result};
use coil_lab::{
    Lab,
    config::{FAR, FAR_MTU, Family, Ip, Options, Routing},
};

use crate::common::{
    LIMIT, addresses, check, end, get, idle_pod, name, namespace, program, server_pod, wait_ready,
};

/// Longer than any path's MTU, so that TCP fills segments: some hundred of them.
const BYTES: u32 = 400_000;

fn start(test: &str, family: Family, routing: Routing) -> Result<Lab> {
    let options = Options { family, routing, nodes: 2, ..Options::named(&name(test)) };
    Lab::start(program(), options)
}

/// Pods of the private pool on both nodes, and of the routed one: a server each on node2.
fn pods(lab: &Lab) -> Result<()> {
    let objects = [
        namespace("routed", "egress"),
        idle_pod("default", "near", "node1", ""),
        server_pod("default", "server", "node2"),
        idle_pod("routed", "near", "node1", ""),
        server_pod("routed", "server", "node2"),
    ];
    lab.apply(&objects.concat())?;
    wait_ready(lab, "default", &["near", "server"])?;
    wait_ready(lab, "routed", &["near", "server"])
}

/// A pod's address of a family.
fn address(lab: &Lab, pod: &str, ip: Ip) -> Result<String> {
    let (namespace, name) = pod.split_once('/').context("NAMESPACE/POD")?;
    let own = addresses(&get(lab, &format!("pod -n {namespace} {name}"))?);
    let found = own.into_iter().find(|a| a.parse().is_ok_and(|a| Ip::of(a) == ip));
    found.with_context(|| format!("{pod} has no {} address", ip.name()))
}

fn socket(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// Routes are learned in their own time: tries until the limit.
fn until_ok(lab: &Lab, what: &str, attempt: impl Fn(&Lab) -> Result<coil_lab::Done>) -> Result<()> {
    lab.wait_for(what, LIMIT, |lab| {
        let done = attempt(lab)?;
        Ok(if done.ok { Ok(()) } else { Err(format!("{}{}", done.stdout, done.stderr)) })
    })
}

/// Everything reaches everything that it may, in both directions.
fn all_reach_all(lab: &Lab, ip: Ip) -> Result<()> {
    let flag = ip.flag();
    let ping = |to: &str| format!("ping {flag} -c 1 -W 2 {to}");
    let (world, node1, node2) =
        (ip.world().to_string(), ip.lan(1).addr().to_string(), ip.lan(2).addr().to_string());
    for namespace in ["default", "routed"] {
        let (near, server) = (format!("{namespace}/near"), format!("{namespace}/server"));
        let (near_address, server_address) = (address(lab, &near, ip)?, address(lab, &server, ip)?);
        until_ok(lab, &format!("{near} to {server}"), |lab| lab.exec(&near, &ping(&server_address)))?;
        let send =
            format!("coil-lab tool tcp-send --bytes {BYTES} --timeout 10 {}", socket(&server_address, 5001));
        lab.exec(&near, &send)?.success()?;
        lab.exec(&server, &ping(&near_address))?.success()?;
        for (node, own) in [("node1", &node1), ("node2", &node2)] {
            lab.exec(&near, &ping(own))?.success()?;
            until_ok(lab, &format!("{node} to {near}"), |lab| lab.node(node, &ping(&near_address)))?;
        }
    }
    let near = address(lab, "routed/near", ip)?;
    let server = address(lab, "routed/server", ip)?;
    until_ok(lab, "routed/near to the world", |lab| lab.exec("routed/near", &ping(&world)))?;
    lab.world(&ping(&near))?.success()?;
    let echo = |to: &str, port| {
        format!("coil-lab tool tcp-echo --times 2 --bytes {BYTES} --timeout 10 {}", socket(to, port))
    };
    lab.exec("routed/near", &echo(&world, 7))?.success()?;
    lab.world(&echo(&server, 5002))?.success()?;
    // A private address is nobody's outside.
    let refused = lab.exec("default/near", &ping(&world))?;
    check(!refused.ok, || format!("a private address reaches the world: {}", refused.stdout))
}

/// The link behind the world is narrower than the pods': routers say so, and nothing stalls.
fn path_mtu(lab: &Lab, ip: Ip) -> Result<()> {
    let far = ip.far(2).addr().to_string();
    let server = address(lab, "routed/server", ip)?;
    let headers = if ip == Ip::V4 { 28 } else { 48 };
    let ping = |size: u32| format!("ping {} -M do -c 2 -i 0.2 -W 2 -s {size} {far}", ip.flag());
    until_ok(lab, "routed/near to far", |lab| lab.exec("routed/near", &ping(FAR_MTU - headers)))?;
    let too_big = lab.exec("routed/near", &ping(1400))?;
    let said = format!("{}{}", too_big.stdout, too_big.stderr);
    check(
        !too_big.ok && said.contains(&format!("mtu={FAR_MTU}")) || said.contains(&format!("mtu = {FAR_MTU}")),
        || format!("1400 bytes over a link of {FAR_MTU}: {said}"),
    )?;
    // From a pod that has heard nothing yet, and back.
    lab.exec(
        "routed/server",
        &format!("coil-lab tool tcp-send --bytes {BYTES} --timeout 10 {}", socket(&far, 5001)),
    )?
    .success()?;
    lab.node(FAR, &format!("coil-lab tool tcp-send --bytes {BYTES} --timeout 10 {}", socket(&server, 5001)))?
        .success()?;
    let route = lab.exec("routed/server", &format!("ip {} route get {far}", ip.flag()))?.success()?;
    check(route.contains(&format!("mtu {FAR_MTU}")), || {
        format!("the pod did not learn the path's MTU: {route}")
    })
}

fn serve_far(lab: &Lab) -> Result<std::process::Child> {
    lab.spawn_on_node(FAR, "coil-lab tool serve 5001")
}

fn in_family(test: &str, family: Family, routing: Routing) -> Result<()> {
    let lab = start(test, family, routing)?;
    pods(&lab)?;
    let mut far = serve_far(&lab)?;
    for ip in family.each() {
        all_reach_all(&lab, *ip)?;
        path_mtu(&lab, *ip)?;
        if routing == Routing::Bird {
            by_bird(&lab, *ip)?;
        }
    }
    far.kill().context("cannot end far's server")?;
    far.wait()?;
    if routing == Routing::Bird {
        blocks_go(&lab, family)?;
    }
    end(lab)
}

/// The blocks came by BGP, the node's own did not come back, and the world took public ones only.
fn by_bird(lab: &Lab, ip: Ip) -> Result<()> {
    let flag = ip.flag();
    let routes = |text: String| {
        text.lines().filter_map(|l| l.split(' ').next().map(str::to_owned)).collect::<Vec<_>>()
    };
    let exported = |node| {
        Ok::<_, anyhow::Error>(routes(lab.node(node, &format!("ip {flag} route show table 119"))?.success()?))
    };
    let learned = routes(lab.node("node1", &format!("ip {flag} route show proto bird"))?.success()?);
    for block in exported("node2")? {
        check(learned.contains(&block), || format!("node1 has no {block} of node2, but {learned:?}"))?;
    }
    for block in exported("node1")? {
        check(!learned.contains(&block), || format!("node1 learned its own {block}"))?;
    }
    let by_router = lab.node("node1", &format!("ip {flag} route show proto 31"))?.success()?;
    check(by_router.is_empty(), || format!("coil-router is at work: {by_router}"))?;
    let world = routes(lab.world(&format!("ip {flag} route show proto bird"))?.success()?);
    let public = |net: &String| net.parse::<ipnet::IpNet>().is_ok_and(|net| ip.routable().contains(&net));
    check(world.len() == 2 && world.iter().all(public), || format!("the world has {world:?}"))
}

/// A block that is given back is withdrawn.
fn blocks_go(lab: &Lab, family: Family) -> Result<()> {
    lab.kubectl("delete pod -n routed server --wait")?.success()?;
    for ip in family.each() {
        lab.wait_for("the world to lose node2's block", LIMIT, |lab| {
            let routes = lab.world(&format!("ip {} route show proto bird", ip.flag()))?.success()?;
            Ok(if routes.lines().count() == 1 { Ok(()) } else { Err(routes) })
        })?;
    }
    Ok(())
}

#[test]
fn routed_addresses_ipv4() -> Result<()> {
    in_family("routed-v4", Family::V4, Routing::Router)
}

#[test]
fn routed_addresses_ipv6() -> Result<()> {
    in_family("routed-v6", Family::V6, Routing::Router)
}

#[test]
fn routed_addresses_dual_stack() -> Result<()> {
    in_family("routed-dual", Family::Dual, Routing::Router)
}

#[test]
fn bird_ipv4() -> Result<()> {
    in_family("bird-v4", Family::V4, Routing::Bird)
}

#[test]
fn bird_ipv6() -> Result<()> {
    in_family("bird-v6", Family::V6, Routing::Bird)
}

#[test]
fn bird_dual_stack() -> Result<()> {
    in_family("bird-dual", Family::Dual, Routing::Bird)
}
