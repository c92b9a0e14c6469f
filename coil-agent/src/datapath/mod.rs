//! Maps, programs and attachments of the node's datapath.
//!
//! ```text
//! Desired ──► image ──► table (difference) ──► pinned maps ◄──► programs
//!    └──────► attach ─► pinned TCX links of uplinks, filters of pods' links
//! ```
//!
//! Maps and links are pinned, so that packets flow on while no agent runs. [`Datapath::open`] adopts
//! what it finds: maps keep their contents, and links get the new programs in place of the old.

mod attach;
mod desired;
mod error;
mod family;
mod filter;
mod image;
mod maglev;
mod object;
mod pins;
mod state;
mod table;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData},
    util::KernelVersion,
};
use coil_packet::abi::{Config, UplinkValue};

use attach::{Attachments, Hook, Place, Program, classifier};
use family::FamilyTables;
use state::Counters;
use table::Table;

pub use desired::{Desired, Egress, EgressId, Gateway, LocalPod, PolicyId};
pub use error::DatapathError;
pub use object::{OBJECT, PINNED_MAPS};
pub use state::{NatEntry, Reading, Swept, monotonic_seconds};
pub use table::Changes;

/// Where the pins are unless told otherwise.
pub const PIN_ROOT: &str = "/sys/fs/bpf/coil";

/// How to open the datapath.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Directory of the pins, inside a bpf file system; made when missing.
    pub pin_root: PathBuf,
}

impl Default for DatapathConfig {
    fn default() -> Self {
        Self { pin_root: PIN_ROOT.into() }
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

/// The datapath of this node. One per node; the caller sees to that.
pub struct Datapath {
    ebpf: Ebpf,
    pin_root: PathBuf,
    attachments: Attachments,
    config: Array<MapData, Config>,
    uplinks: Table<u32, UplinkValue, HashMap<MapData, u32, UplinkValue>>,
    v4: FamilyTables<[u8; 4]>,
    v6: FamilyTables<[u8; 16]>,
    counters: Counters,
}

impl Datapath {
    /// Loads the programs and adopts pinned maps and links. Attaches nothing yet.
    ///
    /// # Errors
    /// On a kernel without TCX, without a bpf file system, or when the kernel refuses the programs.
    pub fn open(config: &DatapathConfig) -> Result<Self, DatapathError> {
        require_tcx()?;
        let maps = config.pin_root.join("maps");
        pins::prepare(&maps)?;
        let mut loader = EbpfLoader::new();
        for name in PINNED_MAPS {
            loader.map_pin_path(name, maps.join(name));
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| DatapathError::Load(Box::new(error)))?;
        for program in Program::ALL {
            classifier(&mut ebpf, program)?.load().map_err(|source| DatapathError::Program {
                name: program.name(),
                action: "load it".into(),
                source: Box::new(source),
            })?;
        }
        let uplinks = take(&mut ebpf, "coil_uplinks")?;
        Ok(Self {
            attachments: Attachments::adopt(config.pin_root.join("links"))?,
            config: take(&mut ebpf, "coil_config")?,
            uplinks: Table::adopt("coil_uplinks", uplinks, table::plain)?,
            v4: FamilyTables::adopt(&mut ebpf, &family::V4)?,
            v6: FamilyTables::adopt(&mut ebpf, &family::V6)?,
            counters: Counters::adopt(&mut ebpf)?,
            pin_root: config.pin_root.clone(),
            ebpf,
        })
    }

    /// Makes the kernel's state what is wanted. Doing it twice changes nothing.
    ///
    /// What a new pod needs is in the maps before its program is attached, and a pod's program goes
    /// before its entries do: no packet of a client ever meets half a policy. The first call after
    /// [`Self::open`] must already state every pod that has a veth.
    ///
    /// # Errors
    /// Names the map, program or link. What was done before stays; calling again continues.
    pub fn apply(&mut self, desired: &Desired) -> Result<Report, DatapathError> {
        let mut report = self.add(desired, true)?;
        let (_, uplinks) = image::common(desired);
        let (v4, v6) = (image::family(desired), image::family(desired));
        report.detached = self.attachments.detach_others(&places(desired))?;
        let now = monotonic_seconds();
        report.entries.removed += self.v4.remove_others(&v4, now)?;
        report.entries.removed += self.v6.remove_others(&v6, now)?;
        report.entries.removed += self.uplinks.remove_others(&uplinks)?.len();
        Ok(report)
    }

    /// Adds and replaces what is stated, and leaves everything else alone: a pod is added without
    /// a look at all others.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn put(&mut self, part: &Desired) -> Result<Report, DatapathError> {
        self.add(part, false)
    }

    fn add(&mut self, part: &Desired, gone_ok: bool) -> Result<Report, DatapathError> {
        let (config, uplinks) = image::common(part);
        let mut report = Report::default();
        let config_error = |action| move |source| DatapathError::Map { name: "coil_config", action, source };
        if self.config.get(&0, 0).map_err(config_error("read it"))? != config {
            self.config.set(0, config, 0).map_err(config_error("write it"))?;
            report.entries.put += 1;
        }
        report.entries += self.uplinks.put_all(&uplinks)?;
        report.entries += self.v4.put_all(&image::family(part))?;
        report.entries += self.v6.put_all(&image::family(part))?;
        report.attached = self.attachments.attach(&mut self.ebpf, &places(part), gone_ok)?;
        Ok(report)
    }

    /// Takes one pod out: its program, then its entries. What its policy was stays until the next
    /// [`Self::apply`]; its flows and translations go at the next [`Self::sweep`], or when another pod gets
    /// one of its addresses. What a newer pod has by now stays.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn take_out(&mut self, ifindex: u32, addresses: &[IpAddr]) -> Result<Report, DatapathError> {
        let detached = self.attachments.detach_from(Program::FromPod, ifindex)?;
        let mut report = Report { detached, ..Report::default() };
        report.entries.removed += self.v4.take_out(ifindex, addresses)?;
        report.entries.removed += self.v6.take_out(ifindex, addresses)?;
        Ok(report)
    }

    /// All counters of the programs, those at zero too.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<Reading>, DatapathError> {
        self.counters.read()
    }

    /// The live translations of the gateways of this node, at `now` in [`monotonic_seconds`].
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn nat_entries(&self, now: u32) -> Result<Vec<NatEntry>, DatapathError> {
        let mut entries = self.v4.state.translations(now)?;
        entries.extend(self.v6.state.translations(now)?);
        Ok(entries)
    }

    /// Removes flows and translations that have run out at `now` in [`monotonic_seconds`].
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn sweep(&mut self, now: u32) -> Result<Swept, DatapathError> {
        let (v4, v6) = (self.v4.sweep(now)?, self.v6.sweep(now)?);
        Ok(Swept { flows: v4.flows + v6.flows, translations: v4.translations + v6.translations })
    }

    /// Detaches every program and removes every pin: the node is as if the datapath had never been.
    ///
    /// # Errors
    /// Names the pin that cannot be removed.
    pub fn detach_all(mut self) -> Result<(), DatapathError> {
        self.attachments.detach_others(&BTreeMap::new())?;
        pins::remove(&self.pin_root)
    }

    /// The loaded object, for tests that run a program on a packet.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// Every place where a program belongs, with its owner for messages.
fn places(desired: &Desired) -> BTreeMap<Place, String> {
    let pods = desired.pods.iter().map(|pod| {
        let hook = if pod.shaped { Hook::Tcx } else { Hook::Filter };
        (Place { program: Program::FromPod, ifindex: pod.ifindex, hook }, format!("pod {}", pod.name))
    });
    let uplinks = desired.uplinks.iter().map(|ifindex| {
        (Place { program: Program::FromNet, ifindex: *ifindex, hook: Hook::Tcx }, "uplink".to_owned())
    });
    pods.chain(uplinks).collect()
}

/// TCX came with Linux 6.6 (commit e420bed02507).
fn require_tcx() -> Result<(), DatapathError> {
    let version = KernelVersion::current().map_err(|error| DatapathError::Load(Box::new(error)))?;
    if version < KernelVersion::new(6, 6, 0) {
        return Err(DatapathError::NoTcx(format!("{version:?}")));
    }
    Ok(())
}

/// Takes a map of the object under its type.
fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, DatapathError>
where
    T: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = ebpf.take_map(name).ok_or(DatapathError::Missing(name))?;
    T::try_from(map).map_err(|source| DatapathError::Map { name, action: "use it", source })
}
