//! Programs on links: TCX links, pinned, so that they work on while no agent runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
    },
};

use super::DatapathError;

/// The programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    /// On the host side of pods' veths.
    FromPod,
    /// On uplinks.
    FromNet,
    /// On the host side of pods' veths, on the way out.
    ToPod,
    /// On uplinks, on the way out.
    ToNet,
}

impl Program {
    pub(super) const ALL: [Self; 4] = [Self::FromPod, Self::FromNet, Self::ToPod, Self::ToNet];

    /// The program's name in the object, which is also the beginning of its pins' names.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::FromNet => "from_net",
            Self::ToPod => "to_pod",
            Self::ToNet => "to_net",
        }
    }

    /// True for what runs on the way out of a link.
    pub(super) const fn is_outward(self) -> bool {
        matches!(self.side(), TcAttachType::Egress)
    }

    /// The hook.
    const fn side(self) -> TcAttachType {
        match self {
            Self::FromPod | Self::FromNet => TcAttachType::Ingress,
            Self::ToPod | Self::ToNet => TcAttachType::Egress,
        }
    }
}

/// A program's place.
pub(super) type Place = (Program, u32);

/// All attachments of this node.
pub(super) struct Attachments {
    dir: PathBuf,
    /// Places whose pinned link carries this agent's program.
    attached: BTreeSet<Place>,
    /// Places whose pinned link was found, with the program of an earlier agent.
    found: BTreeSet<Place>,
}

impl Attachments {
    /// Finds the pinned links in `dir`, which is made when missing.
    pub(super) fn adopt(dir: PathBuf) -> Result<Self, DatapathError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| DatapathError::Pins { action, path, source }
        };
        fs::create_dir_all(&dir).map_err(failed("make", &dir))?;
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&dir).map_err(failed("read", &dir))? {
            let entry = entry.map_err(failed("read", &dir))?;
            if let Some(place) = entry.file_name().to_str().and_then(place) {
                found.insert(place);
            }
        }
        Ok(Self { dir, attached: BTreeSet::new(), found })
    }

    /// Attaches what is missing; `wanted` says whose link it is. A link that an earlier agent left gets
    /// the new program in place of its own: no packet is lost.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        wanted: &BTreeMap<Place, String>,
    ) -> Result<usize, DatapathError> {
        let missing: Vec<_> = wanted.iter().filter(|(place, _)| !self.attached.contains(place)).collect();
        if missing.is_empty() {
            return Ok(0);
        }
        let names: BTreeMap<u32, String> = interfaces();
        for ((program, ifindex), owner) in &missing {
            let Some(interface) = names.get(ifindex) else {
                return Err(DatapathError::NoInterface {
                    program: program.name(),
                    ifindex: *ifindex,
                    owner: (*owner).clone(),
                });
            };
            self.attach_one(ebpf, *program, *ifindex, interface)?;
        }
        Ok(missing.len())
    }

    fn attach_one(
        &mut self,
        ebpf: &mut Ebpf,
        program: Program,
        ifindex: u32,
        interface: &str,
    ) -> Result<(), DatapathError> {
        let pin = self.pin(program, ifindex);
        let code = classifier(ebpf, program)?;
        if self.found.remove(&(program, ifindex)) {
            if replace(code, &pin).is_ok() {
                self.attached.insert((program, ifindex));
                return Ok(());
            }
            // The device of the link is gone, and its index is used again.
            unpin(&pin)?;
        }
        let failed = |action: &'static str| {
            move |source| DatapathError::Program {
                name: program.name(),
                action: format!("{action} {interface}"),
                source: Box::new(source),
            }
        };
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id =
            code.attach_with_options(interface, program.side(), options).map_err(failed("attach it to"))?;
        let link = code.take_link(id).map_err(failed("keep its link to"))?;
        let link = FdLink::try_from(link).map_err(|source| link_error(&pin, "use", source))?;
        link.pin(&pin).map_err(|source| link_error(&pin, "pin", source))?;
        self.attached.insert((program, ifindex));
        Ok(())
    }

    /// Detaches what is not wanted.
    pub(super) fn detach_others(&mut self, wanted: &BTreeMap<Place, String>) -> Result<usize, DatapathError> {
        let extra: Vec<Place> =
            self.attached.union(&self.found).filter(|place| !wanted.contains_key(place)).copied().collect();
        for place in &extra {
            unpin(&self.pin(place.0, place.1))?;
            self.attached.remove(place);
            self.found.remove(place);
        }
        Ok(extra.len())
    }

    fn pin(&self, program: Program, ifindex: u32) -> PathBuf {
        self.dir.join(format!("{}-{ifindex}", program.name()))
    }
}

/// The place that a pin's name states.
fn place(name: &str) -> Option<Place> {
    let (program, ifindex) = name.rsplit_once('-')?;
    let program = Program::ALL.into_iter().find(|p| p.name() == program)?;
    Some((program, ifindex.parse().ok()?))
}

/// Names of the interfaces of this network namespace by index.
fn interfaces() -> BTreeMap<u32, String> {
    let Ok(interfaces) = nix::net::if_::if_nameindex() else { return BTreeMap::new() };
    interfaces.iter().map(|i| (i.index(), i.name().to_string_lossy().into_owned())).collect()
}

/// Looks up a loaded program.
pub(super) fn classifier(ebpf: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier, DatapathError> {
    let name = program.name();
    ebpf.program_mut(name).and_then(|p| p.try_into().ok()).ok_or(DatapathError::Missing(name))
}

/// Makes a pinned link run `code`.
fn replace(code: &mut SchedClassifier, pin: &Path) -> Result<(), DatapathError> {
    let pinned = PinnedLink::from_pin(pin).map_err(|source| link_error(pin, "open", source))?;
    let link = SchedClassifierLink::try_from(FdLink::from(pinned))
        .map_err(|source| link_error(pin, "use", source))?;
    let id = code.attach_to_link(link).map_err(|source| link_error(pin, "replace the program of", source))?;
    // The pin keeps the link; our descriptor of it is not needed.
    let link = code.take_link(id).map_err(|source| link_error(pin, "keep", source))?;
    let link = FdLink::try_from(link).map_err(|source| link_error(pin, "use", source))?;
    std::mem::drop(link);
    Ok(())
}

fn unpin(pin: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::Pins { action: "remove", path: pin.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn link_error(
    pin: &Path,
    action: &'static str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> DatapathError {
    DatapathError::Link { path: pin.to_owned(), action, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_states_its_place() {
        assert_eq!(place("from_pod-12"), Some((Program::FromPod, 12)));
        assert_eq!(place("from_net-3"), Some((Program::FromNet, 3)));
        assert_eq!(place("from_net-x"), None);
        assert_eq!(place("other-3"), None);
    }
}
