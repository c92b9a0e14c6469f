//! Threads that do something in the same moment, on different CPUs as far as there are.

use std::{
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// Longer than a thread takes to wake, much shorter than a test.
const MOMENT: Duration = Duration::from_micros(200);

/// Where threads meet, round by round.
#[derive(Debug)]
pub struct Gate {
    threads: usize,
    barrier: Barrier,
    through: AtomicUsize,
}

impl Gate {
    /// For so many threads. Each has to come in every round: the others wait for it.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self { threads, barrier: Barrier::new(threads), through: AtomicUsize::new(0) }
    }

    /// Waits for all threads; then a moment for another that is awake, as they wake one after the other.
    pub fn pass(&self, round: u16) {
        self.barrier.wait();
        self.through.fetch_add(1, Ordering::AcqRel);
        let two = usize::from(round) * self.threads + 2;
        let begun = Instant::now();
        while self.through.load(Ordering::Acquire) < two && begun.elapsed() < MOMENT {
            std::hint::spin_loop();
        }
    }
}

/// Binds this thread, which has a number, to one of the CPUs that it may use.
///
/// # Errors
/// When the kernel refuses it.
pub fn pin(thread: usize) -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).context("cannot read the thread's CPUs")?;
    let cpus: Vec<usize> =
        (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or_default()).collect();
    let cpu = *cpus.get(thread % cpus.len().max(1)).context("the thread may use no CPU")?;
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("CPU {cpu} is none"))?;
    sched_setaffinity(this, &set).with_context(|| format!("cannot bind a thread to CPU {cpu}"))
}
