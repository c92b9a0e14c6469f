//! An agent finds what somebody else changed and puts it right, and leaves nothing behind when it is told to go.

use std::{collections::BTreeMap, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{
    HashMap, Map, MapData,
    lpm_trie::{Key, LpmTrie},
};
use aya::programs::{SchedClassifier, TcAttachType};
use coil_agent::datapath::{self, Datapath, Drift, Removed, Report};
use coil_cases::world::{CLIENT, PLAIN, UPLINK};
use coil_kernel_tests::{Node, Pins, desired};
use coil_packet::abi::{Config, PodValue, PolicyKey, PoolValue};

fn run(command: &str) -> Result<String> {
    let mut words = command.split(' ');
    let program = words.next().context("a program")?;
    let output =
        Command::new(program).args(words).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn map(pins: &Pins, name: &str) -> Result<Map> {
    Ok(Map::from_map_data(MapData::from_pin(pins.config().pin_root.join("maps").join(name))?)?)
}

/// Looks, expects what is stated, repairs, and expects that nothing is left to repair.
fn repaired(agent: &mut Datapath, expected: Drift, after: &str) -> Result<()> {
    let drift = agent.check()?;
    ensure!(drift == expected, "after {after}: {drift:?}, expected {expected:?}");
    agent.apply(&desired()?)?;
    let drift = agent.check()?;
    ensure!(drift == Drift::default(), "after {after} and its repair: {drift:?}");
    ensure!(
        agent.apply(&desired()?)? == Report::default(),
        "after {after}: applying twice changes something"
    );
    Ok(())
}

const fn entries(entries: usize) -> Drift {
    Drift { entries, programs: 0 }
}

const fn programs(programs: usize) -> Drift {
    Drift { entries: 0, programs }
}

#[test]
fn entries_that_others_change_are_put_right() -> Result<()> {
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        let agent = node.datapath()?;
        ensure!(agent.check()? == Drift::default(), "nobody has changed anything");

        let mut pods: HashMap<_, [u8; 4], PodValue> = map(&pins, "coil_pods4")?.try_into()?;
        let (address, value) = pods.iter().next().context("a pod")??;
        pods.remove(&address)?;
        repaired(agent, entries(1), "a pod was removed")?;
        ensure!(pods.get(&address, 0)? == value, "the pod is not what it was");
        pods.insert(address, PodValue { ifindex: 99, ..value }, 0)?;
        pods.insert([10, 0, 0, 1], value, 0)?;
        repaired(agent, entries(2), "a pod was changed and one added")?;

        let mut pools: LpmTrie<_, [u8; 16], PoolValue> = map(&pins, "coil_pools6")?.try_into()?;
        let (key, _) = pools.iter().next().context("a pool")??;
        pools.remove(&key)?;
        pools.insert(&Key::new(0, [0; 16]), PoolValue::default(), 0)?;
        repaired(agent, entries(2), "a pool became the whole world")?;

        let mut policy: LpmTrie<_, PolicyKey<[u8; 4]>, u32> = map(&pins, "coil_policy4")?.try_into()?;
        let keys: Vec<_> = policy.keys().collect::<Result<_, _>>()?;
        for key in &keys {
            policy.remove(key)?;
        }
        repaired(agent, entries(keys.len()), "the policy was emptied")?;

        run(&format!(
            "bpftool map update pinned {} key 0 0 0 0 value {}",
            pins.config().pin_root.join("maps/coil_config").display(),
            ["0"; size_of::<Config>()].join(" ")
        ))?;
        repaired(agent, entries(1), "the configuration was cleared")
    })
}

#[test]
fn programs_that_others_detach_come_back() -> Result<()> {
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        let agent = node.datapath()?;
        run(&format!("tc filter del dev link{CLIENT} ingress"))?;
        repaired(agent, programs(1), "the filters of a pod were removed")?;
        run(&format!("tc qdisc del dev link{PLAIN} clsact"))?;
        repaired(agent, programs(2), "a pod's qdisc was removed")?;

        let links = pins.config().pin_root.join("links");
        let pin = links.join(format!("from_net-{UPLINK}"));
        if pin.exists() {
            run(&format!("bpftool link detach pinned {}", pin.display()))?;
            repaired(agent, programs(1), "the uplink's link was detached")?;
            std::fs::remove_file(&pin)?;
            repaired(agent, programs(1), "the pin was removed")?;
        } else {
            run(&format!("tc qdisc del dev link{UPLINK} clsact"))?;
            repaired(agent, programs(2), "the uplink's qdisc was removed")?;
        }

        // A program of ours where none belongs: that of a former uplink, say.
        let stray = Stray::attach(agent)?;
        repaired(agent, programs(1), "a stray program")?;
        ensure!(!stray.is_there()?, "the stray program is still there");
        Ok(())
    })
}

/// Our own filter on a link that is neither an uplink nor a pod's.
struct Stray;

impl Stray {
    fn attach(agent: &mut Datapath) -> Result<Self> {
        run("ip link add stray type veth peer name yarts")?;
        run("tc qdisc add dev stray clsact")?;
        let pin = format!("/sys/fs/bpf/coil-stray-{}", std::process::id());
        let program = agent.ebpf().program_mut("from_net").context("a program")?;
        program.pin(&pin)?;
        let attached =
            run(&format!("tc filter add dev stray ingress prio 50 handle 0xc011 bpf da pinned {pin}"));
        std::fs::remove_file(&pin)?;
        attached?;
        ensure!(Self.is_there()?, "tc attached nothing");
        Ok(Self)
    }

    #[expect(clippy::unused_self, reason = "there is one only after it was attached")]
    fn is_there(&self) -> Result<bool> {
        Ok(run("tc filter show dev stray ingress")?.contains("0xc011"))
    }
}

/// What `tc` shows of all links.
fn traces() -> Result<BTreeMap<String, String>> {
    let mut traces = BTreeMap::new();
    for link in nix::net::if_::if_nameindex()?.iter().map(|link| link.name().to_string_lossy().into_owned()) {
        let text = [
            run(&format!("tc qdisc show dev {link}"))?,
            run(&format!("tc filter show dev {link} ingress"))?,
            run(&format!("tc filter show dev {link} egress"))?,
        ];
        traces.insert(link, text.concat());
    }
    Ok(traces)
}

fn ours(traces: &BTreeMap<String, String>) -> Vec<&String> {
    let words = ["from_pod", "to_pod", "from_net", "to_net", "clsact"];
    traces
        .iter()
        .filter(|(_, text)| words.iter().any(|word| text.contains(word)))
        .map(|(link, _)| link)
        .collect()
}

#[test]
fn cleanup_leaves_nothing() -> Result<()> {
    let pins = Pins::new()?;
    let config = pins.config();
    Node::run(&pins, |node| {
        // Somebody else's filter stays, and with it its qdisc.
        let theirs =
            format!("tc filter add dev link{PLAIN} ingress prio 7 protocol ip u32 match u32 0 0 classid 1:1");
        run(&theirs)?;
        let by_tcx = std::fs::read_dir(config.pin_root.join("links"))?.count() == 2;
        let pods = desired()?.pods.len();
        ensure!(
            ours(&traces()?).len() == pods + usize::from(!by_tcx),
            "{pods} pods, and an uplink by filter: {:?}",
            ours(&traces()?)
        );
        let refused = datapath::cleanup(&config).err().context("the datapath was taken from its owner")?;
        ensure!(refused.to_string().contains("another coild"), "{refused}");
        node.end_agent();
        let removed = datapath::cleanup(&config)?;
        ensure!(removed.links + removed.filters == 2 * pods + 2 && removed.maps > 20, "{removed:?}");
        ensure!(!config.pin_root.exists(), "pins are left");
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            let programs = SchedClassifier::query_tcx(&format!("link{UPLINK}"), side);
            ensure!(!by_tcx || programs?.1.is_empty(), "the uplink still runs a program");
        }
        let left = traces()?;
        ensure!(ours(&left).iter().all(|link| **link == format!("link{PLAIN}")), "{left:?}");
        ensure!(!left[&format!("link{PLAIN}")].contains("_pod"), "{left:?}");
        ensure!(left[&format!("link{PLAIN}")].contains("u32"), "the other filter is gone: {left:?}");
        ensure!(datapath::cleanup(&config)? == Removed::default(), "once more finds something");
        std::fs::create_dir(&config.pin_root).context("for the end of the test")
    })
}

/// A map of another version gives way to an empty one, and nothing is fast before the kernel's flows are marked.
#[test]
fn a_map_of_another_layout_is_rebuilt() -> Result<()> {
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        node.end_agent();
        let maps = pins.config().pin_root.join("maps");
        let other = |name: &str, kind: &str| -> Result<()> {
            std::fs::remove_file(maps.join(name))?;
            let path = maps.join(name).display().to_string();
            run(&format!("bpftool map create {path} type {kind} key 4 value 4 entries 8 name other"))
                .map(drop)
        };
        other("coil_pods4", "hash")?;
        other("coil_flows6", "hash")?;
        let before = epoch(&maps)?;
        ensure!(before > 0, "the configuration was written");
        let mut next = Datapath::open(&pins.config())?;
        ensure!(epoch(&maps)? == 0, "flows are forgotten, and the configuration still lets packets be fast");
        let report = next.apply(&desired()?)?;
        ensure!(report.entries.put > 3, "{report:?}");
        ensure!(next.check()? == Drift::default() && epoch(&maps)? > 0, "the maps are not complete");
        Ok(())
    })
}

fn epoch(maps: &Path) -> Result<u64> {
    let text = run(&format!("bpftool -j map dump pinned {}", maps.join("coil_config").display()))?;
    let digits = text.split("\"epoch\":").nth(1).context("an epoch")?;
    let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}
