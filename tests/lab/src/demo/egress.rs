//! An annotated pod leaves through the gateway; another one does not leave at all.

use std::{net::IpAddr, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    Demo,
    manifests::{self, EGRESS, EGRESS_NAMESPACE},
    pods,
};
use crate::{
    Done,
    config::{Ip, WORLD},
    kernel::lacks,
};

const CLIENT: &str = "default/client";
const ECHO_PORT: u16 = 7;
const LIMIT: Duration = Duration::from_secs(30);

/// Creates the Egress and its client.
pub(super) fn start(demo: &mut Demo) -> Result<()> {
    demo.report.heading("An Egress, and a pod annotated as its client");
    let text = manifests::egress(demo.lab.options().family) + &manifests::client();
    demo.report.show(demo.lab.kubectl_with(&["apply", "-f", "-"], &text))?.success()?;
    let deployed = demo.lab.wait_for("the Egress's Deployment", LIMIT, |lab| {
        let get = lab.kubectl(&format!("get deployment -n {EGRESS_NAMESPACE} {EGRESS}"))?;
        Ok(if get.ok { Ok(()) } else { Err(get.stderr) })
    });
    demo.report
        .check("the controller makes a Deployment of the Egress", deployed.map_err(|e| format!("{e:#}")));
    let wait = format!("rollout status -n {EGRESS_NAMESPACE} deployment/{EGRESS} {}", pods::ready_limit());
    let rolled = demo.report.show(demo.lab.kubectl(&wait))?;
    demo.report.check_success("the gateway becomes ready", &rolled);
    let wait = format!("wait --for=condition=Ready pod/client {}", pods::ready_limit());
    let ready = demo.report.show(demo.lab.kubectl(&wait))?;
    demo.report.check_success("the client becomes ready", &ready);
    demo.report
        .show(demo.lab.kubectl("get egress,deployments,services,endpointslices -n internet -o wide"))?;
    demo.report.show(demo.lab.exec(CLIENT, "ip route"))?;
    Ok(())
}

/// HTTP, TCP, UDP and ping through the gateway, in each family.
pub(super) fn traffic(demo: &mut Demo) -> Result<()> {
    let gateways = pods::gateways_are_from_pool(demo)?;
    for ip in demo.lab.options().family.each() {
        let name = ip.name();
        demo.report.heading(&format!("From the client to the world, {name}"));
        let world = ip.world();
        let get =
            demo.report.show(demo.lab.exec(CLIENT, &format!("coil-lab tool http-get {}", url(world, ""))))?;
        let peer = peer(&get);
        demo.report.check(
            &format!("the world's server saw the gateway's address, {name}"),
            match peer {
                Some(peer) if gateways.contains(&peer) => Ok(()),
                other => Err(format!("it saw {other:?}; gateways have {gateways:?}")),
            },
        );
        let echo = SocketAddr::new(world, ECHO_PORT);
        for (what, command) in [
            ("1 MiB echoed 20 times through the gateway", format!("coil-lab tool tcp-echo {echo}")),
            ("UDP echo through the gateway", format!("coil-lab tool udp-echo {echo}")),
            ("ping through the gateway", format!("ping -c 3 -i 0.2 -W 2 {world}")),
        ] {
            let done = demo.report.show(demo.lab.exec(CLIENT, &command))?;
            demo.report.check_success(&format!("{what}, {name}"), &done);
        }
    }
    Ok(())
}

/// A pod without the annotation gets no answer, and the world's server never sees it.
pub(super) fn not_let_out(demo: &mut Demo) -> Result<()> {
    demo.report.heading("A pod without the annotation");
    for ip in demo.lab.options().family.each() {
        let world = ip.world();
        let get = format!("coil-lab tool http-get --timeout 1 {}", url(world, ""));
        let fetched = demo.report.show(demo.lab.exec("default/far", &get))?;
        let echo = SocketAddr::new(world, ECHO_PORT);
        let send = format!("coil-lab tool udp-echo --times 2 --timeout 1 {echo}");
        let echoed = demo.report.show(demo.lab.exec("default/far", &send))?;
        let seen =
            demo.report.show(demo.lab.world(&format!("coil-lab tool http-get {}", url(world, "peers"))))?;
        let addresses = pods::pod_addresses(demo, "default")?;
        let peers: Vec<Value> =
            serde_json::from_str(&seen.success()?).context("the server's answer is no list")?;
        let leaked = peers
            .iter()
            .filter_map(|p| p["peer"].as_str()?.parse::<IpAddr>().ok())
            .find(|peer| addresses.iter().any(|(_, own)| own.contains(peer)));
        demo.report.check(
            &format!("an unannotated pod is not let out, {}", ip.name()),
            match (fetched.ok || echoed.ok, leaked) {
                (false, None) => Ok(()),
                (true, _) => Err("it got an answer".to_owned()),
                (_, Some(peer)) => Err(format!("the {WORLD}'s server saw {peer}")),
            },
        );
    }
    Ok(())
}

/// With the kernel's own datapath: egress needs FOU and ipip, which this kernel may lack.
pub(super) fn kernel(demo: &mut Demo) -> Result<()> {
    let what = "egress on the kernel's own path";
    demo.report.heading("Egress on the kernel's own path");
    if let Some(lacks) = lacks()? {
        let why = format!("this kernel lacks {lacks}; the vm runner (cargo xtask vm) has kernels with them");
        println!("  {why}");
        fails_closed(demo)?;
        demo.report.not_possible(what, &why);
        return Ok(());
    }
    start(demo)?;
    traffic(demo)?;
    not_let_out(demo)
}

/// A client that cannot have its Egress must not start without it.
fn fails_closed(demo: &mut Demo) -> Result<()> {
    let text = manifests::egress(demo.lab.options().family) + &manifests::client();
    demo.report.show(demo.lab.kubectl_with(&["apply", "-f", "-"], &text))?.success()?;
    let events = "get events --field-selector involvedObject.name=client,reason=FailedCreatePodSandBox";
    let refused = demo.lab.wait_for("an Event about the client", LIMIT, |lab| {
        let shown = lab.kubectl(events)?.success()?;
        Ok(if shown.contains("default/client") { Ok(()) } else { Err(format!("{events} says {shown:?}")) })
    });
    demo.report.show(demo.lab.kubectl(events))?;
    demo.report.check(
        "a client without its Egress does not start, and an Event says why",
        refused.map_err(|e| format!("{e:#}")),
    );
    Ok(())
}

fn url(address: IpAddr, path: &str) -> String {
    match Ip::of(address) {
        Ip::V4 => format!("http://{address}/{path}"),
        Ip::V6 => format!("http://[{address}]/{path}"),
    }
}

/// The address that the world's server says it saw.
fn peer(done: &Done) -> Option<IpAddr> {
    let answer: Value = serde_json::from_str(&done.stdout).ok()?;
    answer["peer"].as_str()?.parse().ok()
}
