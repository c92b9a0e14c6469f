//! The programs pass the verifier, their maps are pinned and readable, and a new agent takes over from
//! an old one.

use std::{path::Path as FsPath, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use coil_agent::datapath::{Datapath, Desired, LocalPod, PINNED_MAPS, Report};
use coil_cases::world::UPLINK;
use coil_kernel_tests::{Node, Pins};
use coil_packet::{Path, Reason};

/// Instructions that a verifier may look at in a program: half of what kernels since 5.2 do (`BPF_COMPLEXITY_LIMIT_INSNS`),
/// as another kernel's may look at more than this one's.
const MOST_VERIFIED: u32 = 500_000;

#[test]
fn the_kernel_takes_the_programs() -> Result<()> {
    let pins = Pins::new()?;
    let mut datapath = pins.open()?;
    for path in Path::ALL {
        let program: &SchedClassifier =
            datapath.ebpf().program(path.name()).context("no such program")?.try_into()?;
        // Linux 5.16 says how many.
        let Some(verified) = program.info()?.verified_instruction_count() else { continue };
        println!("{}: {verified} instructions verified", path.name());
        ensure!(verified < MOST_VERIFIED, "{}: {verified} instructions", path.name());
    }
    for name in PINNED_MAPS {
        let pin = pins.config().pin_root.join("maps").join(name);
        std::fs::metadata(&pin).with_context(|| format!("{name} is not pinned"))?;
    }
    drop(datapath);
    Ok(())
}

fn dump(maps: &FsPath, map: &str) -> Result<String> {
    let output = Command::new("bpftool")
        .args(["map", "dump", "pinned"])
        .arg(maps.join(map))
        .output()
        .context("cannot run bpftool (package bpftool)")?;
    ensure!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A person who looks at a map sees names, not bytes.
#[test]
fn maps_show_the_names_of_their_fields() -> Result<()> {
    let pins = Pins::new()?;
    let maps = pins.config().pin_root.join("maps");
    Node::run(&pins, |node| {
        let cases = coil_cases::all();
        // Leaves a translation and, in the other tables, a flow.
        for reason in [Reason::Out, Reason::ToPod] {
            for case in cases.iter().filter(|case| case.reason == reason && case.given.is_empty()) {
                node.packet(case.path.name(), case.ingress, &case.frame)?;
            }
        }
        for family in ["4", "6"] {
            let fields = [
                ("coil_flows", ["low", "high_port", "protocol", "phase", "upward", "check"]),
                ("coil_nat", ["gateway", "client", "remote", "client_port", "remote_port", "protocol"]),
                ("coil_nat_rev", ["gateway", "remote", "port", "client", "client_port", "seen"]),
                ("coil_pods", ["ifindex", "policy", "flags", "mac", "host_mac", "key"]),
                ("coil_policy", ["prefix_len", "policy", "destination", "key", "value", "data"]),
                ("coil_maglev", ["flags", "gateways", "slots", "key", "value", "value"]),
            ];
            for (map, fields) in fields {
                let text = dump(&maps, &format!("{map}{family}"))?;
                for field in fields {
                    ensure!(
                        text.contains(&format!("\"{field}\":")),
                        "{map}{family} shows no {field}:\n{text}"
                    );
                }
            }
        }
        let text = dump(&maps, "coil_config")?;
        ensure!(text.contains("\"fou_port\": 5555"), "{text}");
        Ok(())
    })
}

/// Programs work on while no agent runs, and the next agent replaces them in place.
#[test]
fn a_new_agent_takes_over() -> Result<()> {
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        let desired = coil_kernel_tests::desired()?;
        let links = pins.config().pin_root.join("links");
        let before = link_ids(&links)?;
        ensure!(before.len() == if has_tcx()? { 2 } else { 0 }, "an uplink, both ways: {before:?}");
        let filters = filters(&desired)?;
        let pods = desired.pods.len();
        ensure!(filters.len() == 2 * pods, "{pods} pods, both ways: {filters:?}");

        let refused = Datapath::open(&pins.config()).err().context("two agents own one datapath")?;
        ensure!(refused.to_string().contains("another coild"), "{refused}");
        node.end_agent();
        let mut next = Datapath::open(&pins.config())?;
        let report = next.apply(&desired)?;
        ensure!(
            report == Report { attached: 2 * pods + 2, ..Report::default() },
            "only programs are new: {report:?}"
        );
        ensure!(link_ids(&links)? == before, "the links stay");
        let now = self::filters(&desired)?;
        ensure!(
            now.len() == 2 * pods && now.iter().zip(&filters).all(|(now, before)| now != before),
            "{now:?}"
        );
        ensure!(next.apply(&desired)? == Report::default(), "applying twice changes nothing");

        let mut fewer = desired.clone();
        let gone = fewer.pods.pop().context("a pod")?;
        let report = next.take_out(gone.ifindex, &gone.addresses)?;
        ensure!(next.apply(&fewer)? == Report::default(), "a pod was taken out alone");
        ensure!(report.detached == 2, "{}: {report:?}", gone.name);
        ensure!(report.entries.removed == gone.addresses.len(), "{}: {report:?}", gone.name);

        ensure!(self::filters(&desired)?.len() == 2 * (pods - 1), "the pod's filters are gone");
        next.detach_all()?;
        ensure!(self::filters(&desired)?.is_empty(), "no filter is left");
        ensure!(!pins.config().pin_root.exists(), "nothing is left");
        Ok(())
    })
}

/// True for a kernel with TCX links, by its version: Linux 6.6 (commit e420bed02507).
fn has_tcx() -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor) >= (6, 6)),
        _ => bail!("what version is {release:?}?"),
    }
}

/// Uplinks have TCX links where the kernel knows them, and filters elsewhere; pods' links have filters everywhere.
#[test]
fn attachments_are_those_of_the_kernel() -> Result<()> {
    let pins = Pins::new()?;
    let tcx = has_tcx()?;
    Node::run(&pins, |node| {
        let by = node.datapath()?.uplinks_by();
        ensure!(by == if tcx { "TCX links" } else { "clsact filters" }, "uplinks have {by}, TCX: {tcx}");
        let name = format!("link{UPLINK}");
        for (side, hook, program) in
            [("ingress", TcAttachType::Ingress, "from_net"), ("egress", TcAttachType::Egress, "to_net")]
        {
            let by_filter = tc(&name, side)?.contains(program);
            let pinned = pins.config().pin_root.join("links").join(format!("{program}-{UPLINK}")).exists();
            ensure!((by_filter, pinned) == (!tcx, tcx), "{program}: a filter {by_filter}, a link {pinned}");
            if tcx {
                let (_, programs) = SchedClassifier::query_tcx(&name, hook)?;
                ensure!(programs.len() == 1, "{} programs on one side", programs.len());
            }
        }
        let desired = coil_kernel_tests::desired()?;
        let (filters, pods) = (filters(&desired)?, desired.pods.len());
        ensure!(filters.len() == 2 * pods, "{pods} pods, both ways: {filters:?}");
        Ok(())
    })
}

/// The filters on one side of a link, as `tc` shows them.
fn tc(link: &str, side: &str) -> Result<String> {
    let output = Command::new("tc").args(["filter", "show", "dev", link, side]).output();
    Ok(String::from_utf8_lossy(&output.context("cannot run tc (package iproute2)")?.stdout).into_owned())
}

/// DEL of a pod may come when another plugin has given its address to a newer one.
#[test]
fn what_a_newer_pod_has_stays() -> Result<()> {
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        node.end_agent();
        let desired = coil_kernel_tests::desired()?;
        let mut datapath = Datapath::open(&pins.config())?;
        datapath.apply(&desired)?;
        let [old, other, ..] = &desired.pods[..] else { bail!("two pods") };
        let newer = LocalPod { addresses: old.addresses.clone(), ..other.clone() };
        datapath.put(&Desired { pods: vec![newer], ..desired.clone() })?;
        let report = datapath.take_out(old.ifindex, &old.addresses)?;
        ensure!(report.detached > 0 && report.entries.removed == 0, "{report:?}");
        let report = datapath.take_out(other.ifindex, &old.addresses)?;
        ensure!(report.entries.removed == old.addresses.len(), "{report:?}");
        Ok(())
    })
}

/// Ids of the programs in the filters of the pods' links.
fn filters(desired: &Desired) -> Result<Vec<String>> {
    let mut ids = vec![];
    let sides = [("ingress", "from_pod"), ("egress", "to_pod")];
    for (pod, (side, program)) in desired.pods.iter().flat_map(|pod| sides.map(|side| (pod, side))) {
        let name = nix::net::if_::if_indextoname(pod.ifindex)?.into_string()?;
        let text = tc(&name, side)?;
        let programs: Vec<&str> = text.lines().filter(|line| line.contains(program)).collect();
        ensure!(programs.len() <= 1, "one link runs the program twice: {text}");
        ids.extend(programs.first().map(|line| (*line).to_owned()));
    }
    Ok(ids)
}

/// Names and kernel ids of the pinned links.
fn link_ids(dir: &FsPath) -> Result<Vec<(String, String)>> {
    let mut ids = vec![];
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let output = Command::new("bpftool").args(["link", "show", "pinned"]).arg(entry.path()).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let id = text.split(':').next().unwrap_or_default().to_owned();
        ids.push((entry.file_name().to_string_lossy().into_owned(), id));
    }
    ids.sort();
    Ok(ids)
}
