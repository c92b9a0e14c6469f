//! TCX programs of others, as Cilium has them since 1.16: the kernel asks them before any filter, and each can end the
//! way. Egress goes on, and pods' packets are the kernel's. The fabric is that of `tests/journey.rs`.

use anyhow::{Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use coil_agent::datapath::{Desired, obstacle};
use coil_kernel_tests::{
    Fabric, Pod,
    foreign::{self, Foreign},
    traffic::udp,
};
use coil_packet::Reason;

/// The client's link and the uplink in the fabric.
const CLIENT_LINK: u32 = 10;
const UPLINK: u32 = 2;

/// TCX came with Linux 6.6.
fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

fn by_gateway(fabric: &Fabric, when: &str) -> Result<()> {
    for client in [Pod::Client, Pod::Neighbour] {
        let seen = udp(fabric, client, Pod::World, 100)?;
        ensure!(seen == fabric.address(Pod::Gateway), "{when}: the world saw {seen}\n{}", fabric.counters());
    }
    Ok(())
}

fn beside(v4: bool) -> Result<()> {
    let fabric = Fabric::new(v4)?;
    by_gateway(&fabric, "nobody else")?;
    // Behind ours on the uplink, whichever way ours came there.
    let _uplinks = fabric.on_node(0, || -> Result<_> {
        let attach = |side| Foreign::attach(UPLINK, side, foreign::OK);
        Ok([attach(TcAttachType::Ingress)?, attach(TcAttachType::Egress)?])
    })??;
    by_gateway(&fabric, "others on the uplink")?;
    let found = fabric.on_node(0, || obstacle::on_uplinks(&[UPLINK].into()))??;
    ensure!(
        found.as_ref().is_some_and(|found| found.contains("eth0") && found.contains("foreign")),
        "{found:?}"
    );
    let found = fabric.on_node(1, || obstacle::on_uplinks(&[UPLINK].into()))??;
    ensure!(found.is_none(), "our own program is taken for another's: {found:?}");

    let _link = fabric.on_node(0, || Foreign::attach(CLIENT_LINK, TcAttachType::Ingress, foreign::OK))??;
    let links = [CLIENT_LINK, CLIENT_LINK + 1].into();
    let found = fabric.on_node(0, || obstacle::foreign_links(&links))??;
    ensure!(found == [CLIENT_LINK].into(), "{found:?}");
    // What the agent makes of it when it looks again.
    let stated = fabric.stated(0);
    let mut desired = Desired { forward: false, ..stated.clone() };
    for pod in desired.pods.iter_mut().filter(|pod| pod.ifindex == CLIENT_LINK) {
        (pod.shaped, pod.by_kernel) = (true, true);
    }
    fabric.with_datapath(0, |datapath| Ok(datapath.apply(&desired).map(drop)?))?;
    let before = fabric.count(Reason::ToGateway);
    by_gateway(&fabric, "another program on the client's link")?;
    ensure!(fabric.count(Reason::ToGateway) > before, "{}", fabric.counters());
    // What an agent makes of it that has never seen the link: by itself, at once.
    fabric.replace_agent(0, &stated, || Ok(()))?;
    by_gateway(&fabric, "an agent that finds both")?;
    Ok(())
}

#[test]
fn egress_goes_on_beside_programs_of_others() -> Result<()> {
    if !has_tcx() {
        let fabric = Fabric::new(true)?;
        let attached = fabric.on_node(0, || Foreign::attach(UPLINK, TcAttachType::Ingress, foreign::OK))?;
        ensure!(attached.is_err(), "a kernel with TCX links that nobody can ask for");
        return Ok(());
    }
    beside(true)?;
    beside(false)
}

/// A pod whose link has another's program before ours ever comes.
#[test]
fn a_client_that_another_datapath_has_already() -> Result<()> {
    if !has_tcx() {
        return egress_without_tcx();
    }
    for v4 in [true, false] {
        let fabric = Fabric::new(v4)?;
        let pods = fabric.stated(0).pods;
        let link =
            fabric.on_node(0, || Foreign::attach(CLIENT_LINK, TcAttachType::Ingress, foreign::OK))??;
        // As after DEL and ADD: our programs come to the link, and find the other's there.
        fabric.with_datapath(0, |datapath| {
            for pod in pods.iter().filter(|pod| pod.ifindex == CLIENT_LINK) {
                datapath.take_out(pod.ifindex, &pod.addresses)?;
            }
            Ok(())
        })?;
        fabric.with_datapath(0, |datapath| Ok(datapath.put(&fabric.stated(0)).map(drop)?))?;
        by_gateway(&fabric, "the other was first")?;
        drop(link);
        by_gateway(&fabric, "the other is gone")?;
    }
    Ok(())
}

/// There nothing is before a filter.
fn egress_without_tcx() -> Result<()> {
    by_gateway(&Fabric::new(true)?, "a kernel without TCX")
}
