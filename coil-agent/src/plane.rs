//! The datapath as the rest of the agent uses it: the eBPF one, or none, and why.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use ipnet::IpNet;
use tracing::{debug, info};

use crate::datapath::{
    Datapath, DatapathError, Desired, Drift, EgressId, GatewayNow, Leftover, Reading, Removed, Report, Usage,
    monotonic_seconds,
};

/// Dropped packets that are shown at a sweep.
const SHOWN: usize = 3;

/// What moves pods' packets beside the kernel.
pub trait Dataplane: Send {
    /// Makes it what is wanted; does nothing the second time.
    ///
    /// # Errors
    /// When the kernel refuses; what worked stays.
    fn apply(&mut self, desired: &Desired) -> Result<(), PlaneError>;

    /// Adds and replaces what is stated, and leaves the rest alone.
    ///
    /// # Errors
    /// When the kernel refuses; what worked stays.
    fn put(&mut self, part: &Desired) -> Result<(), PlaneError>;

    /// Takes a pod out, by its link and its addresses.
    ///
    /// # Errors
    /// When the kernel refuses; what worked stays.
    fn take_out(&mut self, ifindex: u32, addresses: &[IpAddr]) -> Result<(), PlaneError>;

    /// Addresses of the clients that it has: at first those of a run before.
    fn clients(&self) -> BTreeSet<IpAddr>;

    /// What leads through which Egress: at first as a run before had it.
    fn destinations(&self) -> BTreeSet<(EgressId, IpNet)>;

    /// An address of a gateway pod as it is now.
    ///
    /// # Errors
    /// When the maps cannot be read.
    fn gateway(&self, address: IpAddr) -> Result<GatewayNow, PlaneError>;

    /// What the gateways of this node had lent at the last sweep.
    fn usage(&self) -> Usage;

    /// Removes what has expired.
    ///
    /// # Errors
    /// When the maps cannot be changed.
    fn sweep(&mut self) -> Result<(), PlaneError>;

    /// Makes the programs decide anew about every flow.
    ///
    /// # Errors
    /// When the map cannot be written.
    fn forget_decisions(&mut self) -> Result<(), PlaneError>;

    /// Compares with the kernel what was last made of it; the next [`Self::apply`] makes it good.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn check(&mut self) -> Result<Drift, PlaneError>;

    /// What the programs counted.
    ///
    /// # Errors
    /// When the map cannot be read.
    fn counters(&self) -> Result<Vec<Reading>, PlaneError>;
}

impl Dataplane for Datapath {
    fn apply(&mut self, desired: &Desired) -> Result<(), PlaneError> {
        let report = Self::apply(self, desired)?;
        if report != Report::default() {
            debug!(?report, "datapath changed");
        }
        Ok(())
    }

    fn put(&mut self, part: &Desired) -> Result<(), PlaneError> {
        let report = Self::put(self, part)?;
        debug!(?report, "added to the datapath");
        Ok(())
    }

    fn take_out(&mut self, ifindex: u32, addresses: &[IpAddr]) -> Result<(), PlaneError> {
        let report = Self::take_out(self, ifindex, addresses)?;
        debug!(?report, "taken out of the datapath");
        Ok(())
    }

    fn clients(&self) -> BTreeSet<IpAddr> {
        Self::clients(self)
    }

    fn destinations(&self) -> BTreeSet<(EgressId, IpNet)> {
        Self::destinations(self)
    }

    fn gateway(&self, address: IpAddr) -> Result<GatewayNow, PlaneError> {
        Ok(Self::gateway(self, address)?)
    }

    fn usage(&self) -> Usage {
        Self::usage(self).clone()
    }

    fn sweep(&mut self) -> Result<(), PlaneError> {
        let swept = Self::sweep(self, monotonic_seconds())?;
        debug!(?swept, "removed what had expired");
        let dropped = self.dropped();
        for dropped in dropped.iter().take(SHOWN) {
            info!("{dropped}");
        }
        for dropped in dropped.iter().skip(SHOWN) {
            debug!("{dropped}");
        }
        Ok(())
    }

    fn forget_decisions(&mut self) -> Result<(), PlaneError> {
        Ok(Self::forget_decisions(self)?)
    }

    fn check(&mut self) -> Result<Drift, PlaneError> {
        Ok(Self::check(self)?)
    }

    fn counters(&self) -> Result<Vec<Reading>, PlaneError> {
        Ok(Self::counters(self)?)
    }
}

/// A dataplane's own error.
pub type PlaneError = Box<dyn std::error::Error + Send + Sync>;

/// The reason for the kernel alone when it was asked for.
pub const CHOSEN: &str = "--datapath kernel";

/// The chosen datapath.
pub struct Plane {
    ebpf: Option<Mutex<Box<dyn Dataplane>>>,
    reason: String,
    leftover: Mutex<Option<Leftover>>,
}

impl Plane {
    /// eBPF programs beside the kernel's own forwarding.
    #[must_use]
    pub fn ebpf(dataplane: Box<dyn Dataplane>) -> Self {
        Self { ebpf: Some(Mutex::new(dataplane)), reason: String::new(), leftover: Mutex::default() }
    }

    /// The kernel alone, and why.
    pub fn kernel(reason: impl Into<String>) -> Self {
        Self { ebpf: None, reason: reason.into(), leftover: Mutex::default() }
    }

    /// The same, with programs of an earlier run.
    #[must_use]
    pub fn beside(self, leftover: Option<Leftover>) -> Self {
        Self { leftover: Mutex::new(leftover), ..self }
    }

    /// Whether programs of an earlier run are still there.
    #[must_use]
    pub fn has_leftover(&self) -> bool {
        self.leftover.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Takes them off the node.
    ///
    /// # Errors
    /// When something cannot be removed; calling again continues.
    pub fn remove_leftover(&self) -> Result<Removed, DatapathError> {
        let mut leftover = self.leftover.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(there) = leftover.as_ref() else { return Ok(Removed::default()) };
        let removed = tokio::task::block_in_place(|| there.remove())?;
        *leftover = None;
        Ok(removed)
    }

    /// `ebpf` or `kernel`.
    #[must_use]
    pub fn mode(&self) -> &'static str {
        if self.ebpf.is_some() { "ebpf" } else { "kernel" }
    }

    /// Why it is not eBPF; empty when it is.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether clients and gateways of Egresses can be served.
    #[must_use]
    pub fn serves_egress(&self) -> bool {
        self.ebpf.is_some()
    }

    /// Runs something with the eBPF datapath; none without one. It may block, so the runtime's other
    /// tasks are moved off this thread.
    pub fn with<T>(&self, work: impl FnOnce(&mut dyn Dataplane) -> T) -> Option<T> {
        let ebpf = self.ebpf.as_ref()?;
        Some(tokio::task::block_in_place(|| {
            // Each operation compares with what is there, so one that a panic cut short is made good
            // by the next.
            let mut dataplane = ebpf.lock().unwrap_or_else(PoisonError::into_inner);
            work(dataplane.as_mut())
        }))
    }
}
