//! Every pairing of a client and a gateway, by the programs and by the kernel, with real traffic.
//!
//! ```text
//!  node a (eBPF or kernel)        node b (eBPF or kernel)
//!  client ──┐                      ┌── gateway
//!           └──── FOU, UDP 5555 ───┘      └─── world ─── far, behind a link with an MTU of 1280
//! ```
//!
//! A client by the kernel dials the Egress's Service, which rules as kube-proxy's turn into the gateway's address;
//! one by eBPF dials the gateway. Needs the kernel modules of `coil_agent::egress::support`, so it is for a virtual
//! machine: `cargo xtask vm --only pairing`. It lists its tests, takes the names of some, and says how each ended as
//! Rust's test programs do.

mod beside;
mod forged;
mod other;
mod place;
mod probes;
mod same;
mod sctp;
mod sport;

use std::process::ExitCode;

use anyhow::{Result, bail};
use place::Place;
use probes::{BESIDE, PROBES, Probe};

/// A client and a gateway.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Pair {
    v4: bool,
    /// The client's node has the programs; else its pod has links and rules.
    client: bool,
    /// The gateway's node has the programs; else its pod has links and masquerading.
    gateway: bool,
    /// FOU source ports by flow.
    sport_auto: bool,
}

impl Pair {
    fn all() -> impl Iterator<Item = Self> {
        (0..16).map(|bits| Self {
            v4: bits & 1 == 0,
            client: bits & 2 == 0,
            gateway: bits & 4 == 0,
            sport_auto: bits & 8 != 0,
        })
    }

    /// What is tried with it.
    fn probes(self) -> impl Iterator<Item = (&'static str, Probe)> {
        PROBES.into_iter().filter(move |(name, _)| *name != BESIDE || (self.client && !self.sport_auto))
    }

    fn name(self, probe: &str) -> String {
        let by = |ebpf| if ebpf { "ebpf" } else { "kernel" };
        format!(
            "{}-client/{}-gateway/{}/{}/{probe}",
            by(self.client),
            by(self.gateway),
            if self.v4 { "v4" } else { "v6" },
            if self.sport_auto { "auto" } else { "fixed" },
        )
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("--list") => {
            for pair in Pair::all() {
                for (probe, _) in pair.probes() {
                    println!("{}: test", pair.name(probe));
                }
            }
            for v4 in [true, false] {
                println!("{}: test", same_name(v4));
            }
            ExitCode::SUCCESS
        }
        Some(_) => match run(&words) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        },
        None => {
            eprintln!("say --list, or the names of tests");
            ExitCode::FAILURE
        }
    }
}

/// The test that compares both gateways.
const fn same_name(v4: bool) -> &'static str {
    if v4 { "the-world-gets-the-same/v4" } else { "the-world-gets-the-same/v6" }
}

/// Runs the tests of these names; options of the test runner are passed over.
fn run(words: &[String]) -> Result<()> {
    let chosen = |name: &String| words.contains(name);
    println!("\nrunning {} tests", words.iter().filter(|word| !word.starts_with("--")).count());
    let mut failed = 0;
    for pair in Pair::all() {
        let mut wanted = pair.probes().filter(|(probe, _)| chosen(&pair.name(probe))).peekable();
        if wanted.peek().is_none() {
            continue;
        }
        let place = Place::new(pair);
        for (probe, check) in wanted {
            let result = place
                .as_ref()
                .map_err(|e| format!("{e:#}"))
                .and_then(|place| check(place).map_err(|e| format!("{e:#}\n{}", place.state())));
            if let Err(error) = &result {
                failed += 1;
                println!("{error}");
            }
            println!("test {} ... {}", pair.name(probe), if result.is_ok() { "ok" } else { "FAILED" });
        }
    }
    for v4 in [true, false] {
        let name = same_name(v4);
        if !chosen(&name.to_owned()) {
            continue;
        }
        let result = same::same(v4);
        if let Err(error) = &result {
            failed += 1;
            println!("{error:#}");
        }
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
    }
    if failed > 0 {
        bail!("{failed} tests failed");
    }
    Ok(())
}
