//! Programs on links, by pinned TCX links or by filters: both work on while no agent runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions},
    },
};

use super::{DatapathError, Desired, desired::LocalPod, filter, obstacle};

/// How often, and how far apart, a place is tried that is not free yet.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

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

    /// The names of the programs of one side, for messages.
    pub(super) const fn anywhere_on(side: TcAttachType) -> &'static str {
        if matches!(side, TcAttachType::Egress) { "to_pod or to_net" } else { "from_pod or from_net" }
    }

    /// The hook.
    const fn side(self) -> TcAttachType {
        match self {
            Self::FromPod | Self::FromNet => TcAttachType::Ingress,
            Self::ToPod | Self::ToNet => TcAttachType::Egress,
        }
    }
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    /// A pinned TCX link.
    Tcx,
    /// A filter; see [`filter`].
    Filter,
}

/// A program's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) program: Program,
    pub(super) ifindex: u32,
    pub(super) hook: Hook,
}

/// Every place where a program belongs, with its owner for messages. `beside`: links with TCX programs of others, which
/// the kernel asks before any filter.
pub(super) fn places(desired: &Desired, link_hook: Hook, beside: &BTreeSet<u32>) -> BTreeMap<Place, String> {
    // Below 6.6 the qdisc of a limited pod is left to whoever limits it, unless egress needs it.
    let ours = |pod: &&LocalPod| !pod.shaped || link_hook == Hook::Tcx || pod.client || pod.gateway;
    let pods = desired.pods.iter().filter(ours).flat_map(|pod| {
        let hook = if pod.shaped || beside.contains(&pod.ifindex) { link_hook } else { Hook::Filter };
        let place = |program| (Place { program, ifindex: pod.ifindex, hook }, format!("pod {}", pod.name));
        [Program::FromPod, Program::ToPod].map(place)
    });
    let uplinks = desired.uplinks.iter().flat_map(|ifindex| {
        let place = |program| (Place { program, ifindex: *ifindex, hook: link_hook }, "uplink".to_owned());
        [Program::FromNet, Program::ToNet].map(place)
    });
    pods.chain(uplinks).collect()
}

/// All attachments of this node.
pub(super) struct Attachments {
    dir: PathBuf,
    /// Pods' links that had TCX programs of others when they were first seen.
    beside: BTreeSet<u32>,
    /// Places that carry this agent's program.
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
        Ok(Self { dir, beside: BTreeSet::new(), attached: BTreeSet::new(), found })
    }

    /// Every place where a program belongs, with its owner for messages. Looks at pods' links that it sees for the first
    /// time.
    pub(super) fn places(&mut self, desired: &Desired, link_hook: Hook) -> BTreeMap<Place, String> {
        if link_hook == Hook::Tcx {
            let known: BTreeSet<u32> = self.attached.iter().map(|place| place.ifindex).collect();
            let new = desired.pods.iter().map(|pod| pod.ifindex).filter(|ifindex| !known.contains(ifindex));
            for ifindex in new {
                let sides = [TcAttachType::Ingress, TcAttachType::Egress];
                if sides.into_iter().any(|side| !obstacle::programs(ifindex, side).is_empty()) {
                    self.beside.insert(ifindex);
                } else {
                    self.beside.remove(&ifindex);
                }
            }
        }
        places(desired, link_hook, &self.beside)
    }

    /// Attaches what is missing; `wanted` says whose link it is. A place that an earlier agent left gets
    /// the new program in place of its own: no packet is lost. Links that are gone are left out when
    /// `gone_ok`: a namespace may go before anybody says so, and no packet comes from there.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        wanted: &BTreeMap<Place, String>,
        gone_ok: bool,
    ) -> Result<usize, DatapathError> {
        let missing: Vec<_> = wanted.iter().filter(|(place, _)| !self.attached.contains(place)).collect();
        let mut attached = 0;
        for (place, owner) in &missing {
            let Some(interface) = interface(place.ifindex) else {
                if gone_ok {
                    continue;
                }
                return Err(DatapathError::NoInterface {
                    program: place.program.name(),
                    ifindex: place.ifindex,
                    owner: (*owner).clone(),
                });
            };
            match place.hook {
                Hook::Tcx => self.attach_link(ebpf, **place, &interface)?,
                Hook::Filter => {
                    let code = classifier(ebpf, place.program)?;
                    filter::attach(code, &interface, place.program.side()).map_err(program_error(
                        place.program,
                        "attach it to",
                        &interface,
                    ))?;
                }
            }
            self.attached.insert(**place);
            attached += 1;
        }
        Ok(attached)
    }

    fn attach_link(&mut self, ebpf: &mut Ebpf, place: Place, interface: &str) -> Result<(), DatapathError> {
        let pin = self.pin(place);
        let code = classifier(ebpf, place.program)?;
        if self.found.remove(&place) {
            if replace(code, &pin).is_ok() {
                return Ok(());
            }
            // The device of the link is gone, and its index is used again.
            unpin(&pin)?;
        }
        let failed = |action| program_error(place.program, action, interface);
        let id = attach_first(code, interface, place.program.side()).map_err(failed("attach it to"))?;
        let link = code.take_link(id).map_err(failed("keep its link to"))?;
        let link = FdLink::try_from(link).map_err(|source| link_error(&pin, "use", source))?;
        link.pin(&pin).map_err(|source| link_error(&pin, "pin", source))?;
        Ok(())
    }

    /// Detaches what is not wanted.
    pub(super) fn detach_others(&mut self, wanted: &BTreeMap<Place, String>) -> Result<usize, DatapathError> {
        let extra: Vec<Place> =
            self.attached.union(&self.found).filter(|place| !wanted.contains_key(place)).copied().collect();
        for place in &extra {
            self.detach(*place)?;
        }
        // Other plugins want the place of an empty qdisc.
        let filters: BTreeSet<u32> =
            extra.iter().filter(|place| place.hook == Hook::Filter).map(|place| place.ifindex).collect();
        for ifindex in filters {
            let Some(link) = interface(ifindex) else { continue };
            filter::leave(ifindex).map_err(|source| DatapathError::Filters { link, source })?;
        }
        Ok(extra.len())
    }

    /// Detaches from a link, whichever way the program is attached.
    pub(super) fn detach_from(&mut self, program: Program, ifindex: u32) -> Result<usize, DatapathError> {
        let places = [Hook::Tcx, Hook::Filter].map(|hook| Place { program, ifindex, hook });
        let there = places.map(|p| (p, self.attached.contains(&p) || self.found.contains(&p)));
        let mut detached = 0;
        for (place, _) in there.into_iter().filter(|(_, there)| *there) {
            self.detach(place)?;
            detached += 1;
        }
        Ok(detached)
    }

    fn detach(&mut self, place: Place) -> Result<(), DatapathError> {
        match place.hook {
            Hook::Tcx => unpin(&self.pin(place))?,
            Hook::Filter => {
                // It went with its link, if that is gone.
                if let Some(interface) = interface(place.ifindex) {
                    filter::detach(&interface, place.program.side()).map_err(program_error(
                        place.program,
                        "detach it from",
                        &interface,
                    ))?;
                }
            }
        }
        self.attached.remove(&place);
        self.found.remove(&place);
        Ok(())
    }

    /// Compares with the kernel: what is not there any more will be attached again, and a filter of ours where none
    /// belongs goes. Returns how many places were not as they should be.
    pub(super) fn check(&mut self, ebpf: &mut Ebpf) -> Result<usize, DatapathError> {
        let mut drift = 0;
        let mut filters = BTreeMap::new();
        for (ifindex, name) in filter::links().map_err(DatapathError::Links)? {
            for side in [TcAttachType::Ingress, TcAttachType::Egress] {
                let failed = |source| DatapathError::Filters { link: name.clone(), source };
                if let Some(program) = filter::program(ifindex, side).map_err(failed)? {
                    filters.insert((ifindex, matches!(side, TcAttachType::Egress)), (name.clone(), program));
                }
            }
        }
        for place in self.attached.clone() {
            // What a link that is gone carried is nobody's loss.
            let Some(interface) = interface(place.ifindex) else { continue };
            let ours = id(classifier(ebpf, place.program)?, place.program)?;
            let there = match place.hook {
                Hook::Filter => {
                    let filter = filters.remove(&(place.ifindex, place.program.is_outward()));
                    filter.is_some_and(|(_, program)| program == ours)
                }
                Hook::Tcx => self.pin(place).exists() && runs(place.program, &interface, ours)?,
            };
            if !there {
                drift += 1;
                self.attached.remove(&place);
                if place.hook == Hook::Tcx && self.pin(place).exists() {
                    self.found.insert(place);
                }
            }
        }
        for ((_, outward), (interface, _)) in filters {
            let side = if outward { TcAttachType::Egress } else { TcAttachType::Ingress };
            filter::detach(&interface, side).map_err(|source| DatapathError::Program {
                name: Program::anywhere_on(side),
                action: format!("detach it from {interface}, where it does not belong"),
                source: Box::new(source),
            })?;
            drift += 1;
        }
        Ok(drift)
    }

    fn pin(&self, place: Place) -> PathBuf {
        self.dir.join(format!("{}-{}", place.program.name(), place.ifindex))
    }
}

/// Removes the pins of one side's links, and with them the links.
pub(super) fn unpin_all(dir: &Path, side: TcAttachType) -> Result<usize, DatapathError> {
    let failed = |source| DatapathError::Pins { action: "read", path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(failed)?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let place = entry.file_name().to_str().and_then(place);
        if place.is_some_and(|place| place.program.side() == side) {
            unpin(&entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Attaches a program before those of others, whose verdict may end the way: egress cannot be left to what they think of it.
fn attach_first(
    code: &mut SchedClassifier,
    interface: &str,
    side: TcAttachType,
) -> Result<SchedClassifierLinkId, ProgramError> {
    let options = || TcAttachOptions::TcxOrder(LinkOrder::first());
    for _ in 1..ATTEMPTS {
        match code.attach_with_options(interface, side, options()) {
            // A link that lost its pin goes in the kernel's own time, and its program with it.
            Err(ProgramError::SyscallError(e)) if e.io_error.raw_os_error() == Some(nix::libc::EEXIST) => {
                thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
    code.attach_with_options(interface, side, options())
}

/// The kernel's number of a loaded program.
fn id(code: &SchedClassifier, program: Program) -> Result<u32, DatapathError> {
    Ok(code.info().map_err(program_error(program, "look at it for", "its links"))?.id())
}

/// True when the interface runs the program of that id by a TCX link.
fn runs(program: Program, interface: &str, id: u32) -> Result<bool, DatapathError> {
    match SchedClassifier::query_tcx(interface, program.side()) {
        Ok((_, programs)) => Ok(programs.iter().any(|program| program.id() == id)),
        // The link went in this moment.
        Err(_) if self::interface(interface_index(interface)).is_none() => Ok(true),
        Err(source) => Err(program_error(program, "look for it on", interface)(source)),
    }
}

fn interface_index(interface: &str) -> u32 {
    nix::net::if_::if_nametoindex(interface).unwrap_or(0)
}

/// The place that a pin's name states.
fn place(name: &str) -> Option<Place> {
    let (program, ifindex) = name.rsplit_once('-')?;
    let program = Program::ALL.into_iter().find(|p| p.name() == program)?;
    Some(Place { program, ifindex: ifindex.parse().ok()?, hook: Hook::Tcx })
}

/// The name of an interface of this network namespace.
fn interface(ifindex: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(ifindex).ok()?.into_string().ok()?;
    // A link on its way out may have lost its name already.
    Some(name).filter(|name| !name.is_empty())
}

fn program_error(
    program: Program,
    action: &'static str,
    interface: &str,
) -> impl FnOnce(ProgramError) -> DatapathError {
    let action = format!("{action} {interface}");
    move |source| DatapathError::Program { name: program.name(), action, source: Box::new(source) }
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
    fn hooks_follow_the_kernel_and_who_else_wants_the_link() {
        let pod = |ifindex: u32, client: bool, shaped: bool| LocalPod {
            name: "ns/pod".into(),
            addresses: vec![],
            ifindex,
            mac: [2; 6],
            host_mac: [3; 6],
            mtu: 1500,
            policy: 0,
            client,
            originating_only: false,
            kernel_client: false,
            gateway: false,
            kernel_gateway: false,
            new_clients: false,
            by_kernel: shaped,
            shaped,
        };
        let desired = Desired {
            pods: vec![pod(1, false, false), pod(2, false, true), pod(3, true, true), pod(4, false, false)],
            ..Desired::default()
        };
        let hooks = |hook, beside: &[u32]| {
            let places = places(&desired, hook, &beside.iter().copied().collect());
            let from_pod = places.into_keys().filter(|place| place.program == Program::FromPod);
            from_pod.map(|place| (place.ifindex, place.hook)).collect::<Vec<_>>()
        };
        assert_eq!(
            hooks(Hook::Tcx, &[4]),
            [(1, Hook::Filter), (2, Hook::Tcx), (3, Hook::Tcx), (4, Hook::Tcx)],
            "a filter's qdisc would be in the way of a limit, and behind programs of others"
        );
        assert_eq!(
            hooks(Hook::Filter, &[]),
            [(1, Hook::Filter), (3, Hook::Filter), (4, Hook::Filter)],
            "the qdisc of a pod with a limit is the bandwidth plugin's, unless egress needs it"
        );
    }

    #[test]
    fn a_pin_states_its_place() {
        assert_eq!(
            place("from_pod-12"),
            Some(Place { program: Program::FromPod, ifindex: 12, hook: Hook::Tcx })
        );
        assert_eq!(place("to_net-3").map(|place| place.program), Some(Program::ToNet));
        assert_eq!(place("from_net-x"), None);
        assert_eq!(place("other-3"), None);
    }
}
