//! A rolling update of gateways that carry flows.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use coil_lab::{Lab, config::Ip};
use coil_traffic::machine::patience;
use serde_json::Value;

use crate::{
    common::{LIMIT, addresses, check, end, items, logs},
    edge,
    egress::{
        DESTINATIONS, egress, finish, gateways, open_flows, rolled_out, seen, start_with_client_of, wait_out,
    },
    gateways::connections_of,
};

/// Grace period of the gateways, which is for their flows. Longer than all else here: it is flows that keep a gateway.
const PATIENCE: Duration = Duration::from_secs(240);

/// Addresses of an Egress's gateways, by whether they are terminating.
fn gateways_by_end(lab: &Lab, egress: &str) -> Result<(BTreeSet<IpAddr>, BTreeSet<IpAddr>)> {
    let pods = items(lab, &format!("pods -n internet -l app.kubernetes.io/instance={egress}"))?;
    let (going, staying): (Vec<_>, Vec<_>) =
        pods.iter().partition(|pod| !pod["metadata"]["deletionTimestamp"].is_null());
    let all = |pods: Vec<&Value>| pods.into_iter().flat_map(addresses).flat_map(|a| a.parse()).collect();
    Ok((all(going), all(staying)))
}

/// The Egress `nat`, over whose gateways a client's flows are spread, and which have the time that these need.
pub(crate) fn patient_egress(fields: &str) -> String {
    let fields = format!("sessionAffinity: None, {fields}destinations: {DESTINATIONS}");
    let seconds = patience(PATIENCE).as_secs();
    egress("nat", &fields).replace(
        "containers: [{name: egress}]",
        &format!("terminationGracePeriodSeconds: {seconds}, containers: [{{name: egress}}]"),
    )
}

#[test]
fn flows_finish_on_gateways_that_go() -> Result<()> {
    let lab = start_with_client_of("draining", &patient_egress("replicas: 2, "))?;
    flows_finish_in_a_rolling_update(&lab, 100)?;
    end(lab)
}

/// Opens so many flows of each family, and updates both gateways of [`patient_egress`] under them.
pub(crate) fn flows_finish_in_a_rolling_update(lab: &Lab, of_each: usize) -> Result<()> {
    let before = gateways(lab, "nat")?;
    let may_end = logs(&lab.options().name)?.join("flows-may-end");
    let lasting = format!("--times 1 --until {} --timeout 20", may_end.display());
    let flows = open_flows(lab, "default/client", of_each, &lasting)?;
    let carried =
        |lab: &Lab| before.iter().map(|address| connections_of(lab, *address)).collect::<Result<Vec<_>>>();
    let all = carried(lab)?;
    check(before.len() == 4 && all.iter().sum::<usize>() == 2 * of_each && !all.contains(&0), || {
        format!("of the gateways {before:?} the world sees {all:?} flows")
    })?;

    let told = Instant::now();
    lab.kubectl("rollout restart -n internet deployment/nat")?.success()?;
    // Both old gateways were told to go, and not one flow, none of which may end yet, has left them.
    let new = lab.wait_for("both old gateways to be terminating", LIMIT * 2, |lab| {
        let (going, staying) = gateways_by_end(lab, "nat")?;
        let all_go = before.is_subset(&going) && staying.len() == before.len();
        Ok(if all_go { Ok(staying) } else { Err(format!("{going:?} are, {staying:?} stay")) })
    })?;
    // What begins now leaves by those that stay.
    lab.wait_for("new flows to leave by new gateways", LIMIT, |lab| {
        let mut strays = Vec::new();
        for ip in [Ip::V4, Ip::V6] {
            for _ in 0..5 {
                let seen = seen(lab, "default/client", ip)?;
                strays.extend((!seen.is_some_and(|seen| new.contains(&seen))).then_some(seen));
            }
        }
        Ok(if strays.is_empty() { Ok(()) } else { Err(format!("the world saw {strays:?}, not {new:?}")) })
    })?;
    let (going, _) = gateways_by_end(lab, "nat")?;
    let still = carried(lab)?;
    check(before.is_subset(&going) && still == all, || {
        format!("of {before:?}, which had {all:?} flows, {going:?} are terminating; they have {still:?}")
    })?;

    std::fs::write(&may_end, "").with_context(|| format!("cannot write {}", may_end.display()))?;
    for flow in flows {
        finish("flows of a family", flow)?;
    }
    lab.wait_for("the old gateways to go", LIMIT, |lab| {
        let now = gateways(lab, "nat")?;
        Ok(if now.iter().any(|g| before.contains(g)) { Err(format!("there are {now:?}")) } else { Ok(()) })
    })?;
    check(told.elapsed() < patience(PATIENCE), || {
        "gateways went for want of patience, not of flows".to_owned()
    })?;
    rolled_out(lab, "nat")?;
    wait_out(lab, "default/client", "nat")?;
    edge::nothing_leaked(lab)?;
    edge::only_gateways_got_out(lab, &(&before | &new))
}
