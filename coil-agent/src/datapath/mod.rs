//! Maps, programs and attachments of the node's datapath.
//!
//! ```text
//! Desired ──► image ──► table (difference) ──► pinned maps ◄──► programs
//!    └──────► attach ─► pinned TCX links of uplinks,   ▲
//!                       filters of pods' links         │
//!             conntrack ──► flows ─────────────────────┘
//! ```
//!
//! Maps and links are pinned, so that packets flow on while no agent runs. [`Datapath::open`] adopts
//! what it finds: maps keep their contents, and links get the new programs in place of the old.

mod attach;
mod changes;
mod cleanup;
pub(crate) mod conntrack;
mod desired;
mod error;
mod events;
mod family;
mod filter;
mod flows;
mod image;
mod leases;
mod leftover;
mod load;
mod lock;
mod log;
mod maglev;
mod marks;
pub(crate) mod netlink;
mod object;
pub mod obstacle;
mod outgrown;
mod own_ports;
mod pairs;
mod pins;
mod ports;
mod state;
mod sweep;
mod table;
mod usage;
mod walk;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData},
};
use coil_packet::abi::{Config, Lost, UplinkValue, config_flag};
use ipnet::IpNet;
use tracing::info;

use attach::{Attachments, Hook, Program, classifier};
use events::Events;
use family::FamilyTables;
use load::{load, require_kernel};
use lock::Lock;
use log::Log;
use outgrown::Outgrown;
use own_ports::OwnPorts;
use ports::Ports;
use state::{Counters, Survey};
use table::Table;

pub use changes::NetworkChanges;
pub use cleanup::{Removed, cleanup};
pub use desired::{Desired, Egress, EgressId, Gateway, LocalPod, PolicyId};
pub use error::DatapathError;
pub use events::Dropped;
pub use leftover::Leftover;
pub use log::LogLevel;
pub use object::{OBJECT, PINNED_MAPS};
pub use state::{NatEntry, Reading, Swept, monotonic_seconds};
pub use sweep::PART;
pub use table::Changes;
pub use usage::{CALM, GatewayNow, GatewayUse, Remote, Usage};

/// Where the pins are unless told otherwise.
pub const PIN_ROOT: &str = "/sys/fs/bpf/coil";

/// How long an agent that is being replaced may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// How to open the datapath.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Directory of the pins, inside a bpf file system; made when missing.
    pub pin_root: PathBuf,
    /// How long to wait for another agent to end.
    pub patience: Duration,
    /// Maps with another number of entries than the object states.
    pub entries: Vec<(&'static str, u32)>,
}

impl Default for DatapathConfig {
    fn default() -> Self {
        Self { pin_root: PIN_ROOT.into(), patience: PATIENCE, entries: vec![] }
    }
}

/// What [`Datapath::apply`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Map entries.
    pub entries: Changes,
    /// Programs attached, or replaced in a link of an earlier agent.
    pub attached: usize,
    /// Programs detached.
    pub detached: usize,
}

/// What was not as this agent had left it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Map entries.
    pub entries: usize,
    /// Attachments of programs.
    pub programs: usize,
}

/// The datapath of this node. One per node: the directory of the pins is locked as long as it lives.
pub struct Datapath {
    _lock: Lock,
    ebpf: Ebpf,
    pin_root: PathBuf,
    attachments: Attachments,
    config: Array<MapData, Config>,
    lost: Array<MapData, Lost>,
    uplinks: Table<u32, UplinkValue, HashMap<MapData, u32, UplinkValue>>,
    v4: FamilyTables<[u8; 4]>,
    v6: FamilyTables<[u8; 16]>,
    ports: Ports,
    own_ports: OwnPorts,
    /// As of the last pass over all translations.
    usage: Usage,
    /// The pass that is under way.
    survey: Option<Survey>,
    counters: Counters,
    events: Events,
    log: Log,
    /// Pools as last wanted.
    pools: Vec<IpNet>,
    /// The configuration as last written.
    stated: Option<Config>,
    /// Maps of an earlier version, until its programs are replaced.
    before: Option<Outgrown>,
    /// How programs are attached to uplinks, and to links that somebody else wants the qdisc of.
    link_hook: Hook,
}

impl Datapath {
    /// Loads the programs and adopts pinned maps and links. Attaches nothing yet.
    ///
    /// # Errors
    /// On a kernel before 5.10, without a bpf file system, while another agent has the datapath, or when the kernel
    /// refuses the programs.
    pub fn open(config: &DatapathConfig) -> Result<Self, DatapathError> {
        let link_hook = require_kernel()?;
        let lock = Lock::take(&config.pin_root, config.patience)?;
        let maps = config.pin_root.join("maps");
        let outgrown = pins::prepare(&maps, &config.entries)?;
        let mut loader = EbpfLoader::new();
        for name in PINNED_MAPS {
            loader.map_pin_path(name, maps.join(name));
        }
        loader.map_pin_path(log::LEVEL, maps.join(log::LEVEL));
        for (name, entries) in &config.entries {
            loader.map_max_entries(name, *entries);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| DatapathError::Load(Box::new(error)))?;
        for program in Program::ALL {
            load(classifier(&mut ebpf, program)?).map_err(|source| DatapathError::Program {
                name: program.name(),
                action: "load it".into(),
                source: Box::new(source),
            })?;
        }
        let uplinks = take(&mut ebpf, "coil_uplinks")?;
        let mut opened = Self {
            attachments: Attachments::adopt(config.pin_root.join("links"))?,
            config: take(&mut ebpf, "coil_config")?,
            lost: take(&mut ebpf, "coil_lost")?,
            uplinks: Table::adopt("coil_uplinks", uplinks, table::plain)?,
            v4: FamilyTables::adopt(&mut ebpf, &family::V4)?,
            v6: FamilyTables::adopt(&mut ebpf, &family::V6)?,
            ports: Ports::adopt(&mut ebpf)?,
            own_ports: OwnPorts::adopt(&mut ebpf)?,
            usage: Usage::new(),
            survey: None,
            counters: Counters::adopt(&mut ebpf)?,
            events: Events::adopt(&mut ebpf)?,
            log: Log::adopt(&mut ebpf)?,
            pools: vec![],
            stated: None,
            _lock: lock,
            link_hook,
            pin_root: config.pin_root.clone(),
            ebpf,
            before: None,
        };
        opened.take_over(&outgrown)?;
        opened.before = Some(outgrown);
        Ok(opened)
    }

    fn take_over(&mut self, outgrown: &Outgrown) -> Result<(), DatapathError> {
        let moved = self.v4.leases.take_over(outgrown)? + self.v6.leases.take_over(outgrown)?;
        if moved > 0 {
            info!(entries = moved, "moved what maps of another size held");
        }
        Ok(())
    }

    /// What is left of an earlier version goes, now that none of its programs runs.
    fn leave_behind(&mut self) -> Result<(), DatapathError> {
        let Some(outgrown) = self.before.take() else { return Ok(()) };
        self.take_over(&outgrown)?;
        let removed = pins::remove_others(&self.pin_root.join("maps"))?;
        if removed > 0 {
            info!(maps = removed, "removed maps of another version");
        }
        Ok(())
    }

    /// Makes the kernel's state what is wanted. Doing it twice changes nothing.
    ///
    /// What a new pod needs is in the maps before its program is attached, and a pod's program goes
    /// before its entries do: no packet of a client ever meets half a policy. Nothing is fast on a link before
    /// the kernel's flows there are marked, those of before too. The first call after
    /// [`Self::open`] must already state every pod that has a veth.
    ///
    /// # Errors
    /// Names the map, program or link. What was done before stays; calling again continues.
    pub fn apply(&mut self, desired: &Desired) -> Result<Report, DatapathError> {
        let applied = self.try_apply(desired);
        let report = self.decide_anew_after(applied)?;
        self.leave_behind()?;
        Ok(report)
    }

    fn try_apply(&mut self, desired: &Desired) -> Result<Report, DatapathError> {
        let mut report = self.add(desired, true)?;
        let (_, uplinks) = image::common(desired);
        let (v4, v6) = (image::family(desired), image::family(desired));
        let places = self.attachments.places(desired, self.link_hook);
        report.detached = self.attachments.detach_others(&places)?;
        let (now, limits) = (monotonic_seconds(), conntrack::limits());
        report.entries.removed += self.v4.remove_others(&v4, now, &limits)?;
        report.entries.removed += self.v6.remove_others(&v6, now, &limits)?;
        report.entries.removed += self.uplinks.remove_others(&uplinks)?.len();
        report.entries.removed += self.own_ports.set(&desired.own_ports)?;
        Ok(report)
    }

    /// Adds and replaces what is stated, and leaves everything else alone: a pod is added without
    /// a look at all others.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn put(&mut self, part: &Desired) -> Result<Report, DatapathError> {
        let added = self.add(part, false);
        self.decide_anew_after(added)
    }

    fn add(&mut self, part: &Desired, gone_ok: bool) -> Result<Report, DatapathError> {
        let (mut config, uplinks) = image::common(part);
        let (outward, inward): (BTreeMap<_, _>, BTreeMap<_, _>) = self
            .attachments
            .places(part, self.link_hook)
            .into_iter()
            .partition(|(place, _)| place.program.is_outward());
        let mut report = Report::default();
        self.pools = part.pools.iter().copied().collect();

        // What becomes fast now waits until the kernel's flows are marked.
        let starts = config.flags & !self.read_config()?.flags & FAST_FLAGS;
        report.entries.put += self.put_config(Config { flags: config.flags & !starts, ..config })?;
        report.entries.put += self.own_ports.put(&part.own_ports)?;
        let (v4, v6) = (image::family(part), image::family(part));
        let (slow4, slow6) = (self.v4.become_slow(&v4), self.v6.become_slow(&v6));
        report.entries += self.v4.put_all(&v4)?;
        report.entries += self.v6.put_all(&v6)?;
        self.v4.flows.forget_fast_of(&slow4)?;
        self.v6.flows.forget_fast_of(&slow6)?;
        report.attached = self.attachments.attach(&mut self.ebpf, &outward, gone_ok)?;
        if starts & config_flag::FORWARD != 0 {
            self.v4.flows.forget_fast()?;
            self.v6.flows.forget_fast()?;
        }
        if starts != 0 || config.flags & config_flag::MARK != 0 && self.uplinks.lacks(&uplinks) {
            // Without all marks an answer of a service could pass for a datagram that begins a flow.
            if !self.mark_connections() {
                config.flags &= !config_flag::FAST_UDP;
            }
        }
        report.attached += self.attachments.attach(&mut self.ebpf, &inward, gone_ok)?;
        report.entries += self.uplinks.put_all(&uplinks)?;
        report.entries.put += self.put_config(config)?;
        Ok(report)
    }

    /// Takes one pod out: its program, then its entries. What its policy was stays until the next
    /// [`Self::apply`]; its flows and translations go at the next [`Self::sweep`], or when another pod gets
    /// one of its addresses. What a newer pod has by now stays.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn take_out(&mut self, ifindex: u32, addresses: &[IpAddr]) -> Result<Report, DatapathError> {
        let taken = self.try_take_out(ifindex, addresses);
        self.decide_anew_after(taken)
    }

    fn try_take_out(&mut self, ifindex: u32, addresses: &[IpAddr]) -> Result<Report, DatapathError> {
        let mut detached = self.attachments.detach_from(Program::FromPod, ifindex)?;
        detached += self.attachments.detach_from(Program::ToPod, ifindex)?;
        let mut report = Report { detached, ..Report::default() };
        report.entries.removed += self.v4.take_out(ifindex, addresses)?;
        report.entries.removed += self.v6.take_out(ifindex, addresses)?;
        Ok(report)
    }

    /// Addresses of the clients of Egresses that the maps have: right after [`Self::open`] those of the agent before.
    #[must_use]
    pub fn clients(&self) -> BTreeSet<IpAddr> {
        self.v4.clients().chain(self.v6.clients()).collect()
    }

    /// What leads through which Egress in the maps: right after [`Self::open`] as the agent before had it.
    #[must_use]
    pub fn destinations(&self) -> BTreeSet<(EgressId, IpNet)> {
        self.v4.destinations().chain(self.v6.destinations()).collect()
    }

    /// Compares maps and attachments with what this agent has made of them. What differs is made good by the next
    /// [`Self::apply`]. To be called after a first [`Self::apply`] only.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn check(&mut self) -> Result<Drift, DatapathError> {
        let programs = self.attachments.check(&mut self.ebpf)?;
        let mut entries =
            self.uplinks.check()? + self.own_ports.check()? + self.v4.check()? + self.v6.check()?;
        let there = self.read_config()?;
        if self.stated.is_some_and(|stated| Config { epoch: there.epoch, ..stated } != there) {
            entries += 1;
        }
        let drift = Drift { entries, programs };
        if drift != Drift::default() {
            self.forget_decisions()?;
        }
        Ok(drift)
    }

    fn read_config(&self) -> Result<Config, DatapathError> {
        self.config.get(&0, 0).map_err(|source| DatapathError::Map {
            name: "coil_config",
            action: "read it",
            source,
        })
    }

    /// Writes the configuration when it differs; the epoch stays as it is. Returns how often it wrote.
    fn put_config(&mut self, config: Config) -> Result<usize, DatapathError> {
        let there = self.read_config()?;
        let config = Config { epoch: there.epoch, ..config };
        self.stated = Some(config);
        if there == config {
            return Ok(0);
        }
        self.write_config(config)?;
        Ok(1)
    }

    fn write_config(&mut self, config: Config) -> Result<(), DatapathError> {
        self.config.set(0, config, 0).map_err(|source| DatapathError::Map {
            name: "coil_config",
            action: "write it",
            source,
        })
    }

    /// Leaves every packet from pod to pod to the kernel, until the next [`Self::apply`].
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn stop_forwarding(&mut self) -> Result<(), DatapathError> {
        let config = self.read_config()?;
        self.put_config(Config { flags: config.flags & !FAST_FLAGS, ..config }).map(drop)
    }

    /// Makes the programs decide anew about every flow. To be called after any change of routes, rules or links;
    /// [`Self::apply`] does it for its own changes.
    ///
    /// # Errors
    /// When the map cannot be written. A decision is forgotten after a second anyway.
    pub fn forget_decisions(&mut self) -> Result<(), DatapathError> {
        let config = self.read_config()?;
        self.write_config(Config { epoch: config.epoch.wrapping_add(1).max(1), ..config })
    }

    /// The same when something was changed, also where that then failed: what was decided by half of it must not last.
    fn decide_anew_after(&mut self, changed: Result<Report, DatapathError>) -> Result<Report, DatapathError> {
        if changed.as_ref().is_ok_and(|report| *report == Report::default()) {
            return changed;
        }
        let forgotten = self.forget_decisions();
        let report = changed?;
        forgotten.map(|()| report)
    }

    /// All counters of the programs, those at zero too.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<Reading>, DatapathError> {
        self.counters.read()
    }

    /// Says what a debug build of the programs tells of its packets from now on. False for another build.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_log(&mut self, level: LogLevel) -> Result<bool, DatapathError> {
        self.log.set(level)
    }

    /// Packets that the programs dropped since the last time: at most five a second are told of.
    pub fn dropped(&mut self) -> Vec<Dropped> {
        self.log.show();
        self.events.take()
    }

    /// The live translations of the gateways of this node, at `now` in [`monotonic_seconds`].
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn nat_entries(&self, now: u32) -> Result<Vec<NatEntry>, DatapathError> {
        let mut entries = self.v4.leases.live(now)?;
        entries.extend(self.v6.leases.live(now)?);
        Ok(entries)
    }

    /// Detaches every program and removes every pin: the node is as if the datapath had never been.
    ///
    /// # Errors
    /// Names the pin that cannot be removed.
    pub fn detach_all(mut self) -> Result<(), DatapathError> {
        self.attachments.detach_others(&BTreeMap::new())?;
        cleanup::all(&self.pin_root).map(drop)
    }

    /// How programs are attached to uplinks, for people.
    #[must_use]
    pub const fn uplinks_by(&self) -> &'static str {
        match self.link_hook {
            Hook::Tcx => "TCX links",
            Hook::Filter => "clsact filters",
        }
    }

    /// The loaded object, for tests that run a program on a packet.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// What a packet may not be before the kernel's flows are marked.
const FAST_FLAGS: u32 = config_flag::FORWARD | config_flag::FAST_UDP;

/// Takes a map of the object under its type.
fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, DatapathError>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = ebpf.take_map(name).ok_or(DatapathError::Missing(name))?;
    T::try_from(map).map_err(|source| DatapathError::Map { name, action: "use it", source })
}
