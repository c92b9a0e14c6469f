//! What debug builds of the programs tell of their packets, in this program's own log.
//!
//! Such a build has a map `coil_log` with the level, which may change while it runs; see `docs/datapath.md`.

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use aya_log::EbpfLogger;
use coil_packet::{Path, Reason};
use tracing::{debug, info, warn};

use super::{DatapathError, take};

/// The map with the level.
pub(super) const LEVEL: &str = "coil_log";

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Dropped packets.
    Drops,
    /// Those that were sent on, too.
    Sent,
    /// All, those that the kernel handles too.
    All,
}

impl LogLevel {
    /// The number that the programs compare with: those of aya-log's levels.
    const fn number(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::Drops => 2,
            Self::Sent => 3,
            Self::All => 4,
        }
    }
}

/// The log of the loaded programs; nothing of a build that has none.
#[derive(Default)]
pub(super) struct Log {
    level: Option<Array<MapData, u32>>,
    records: Option<EbpfLogger<Sink>>,
}

impl Log {
    pub(super) fn adopt(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        if ebpf.map(LEVEL).is_none() {
            return Ok(Self::default());
        }
        info!("the eBPF programs are a debug build: {LEVEL} says what they tell");
        Ok(Self {
            level: Some(take(ebpf, LEVEL)?),
            records: EbpfLogger::init_with_logger(ebpf, Sink)
                .inspect_err(|error| warn!(%error, "cannot hear what the eBPF programs tell"))
                .ok(),
        })
    }

    /// Sets the level. False when the programs tell nothing.
    pub(super) fn set(&mut self, level: LogLevel) -> Result<bool, DatapathError> {
        let Some(map) = &mut self.level else { return Ok(false) };
        map.set(0, level.number(), 0).map_err(|source| DatapathError::Map {
            name: LEVEL,
            action: "write it",
            source,
        })?;
        Ok(true)
    }

    /// Shows what was told since the last time.
    pub(super) fn show(&mut self) {
        if let Some(records) = &mut self.records {
            records.flush();
        }
    }
}

/// Where the records go.
struct Sink;

impl log::Log for Sink {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let told = named(&record.args().to_string());
        match record.level() {
            log::Level::Error | log::Level::Warn => warn!(told, "eBPF"),
            log::Level::Info => info!(told, "eBPF"),
            log::Level::Debug | log::Level::Trace => debug!(told, "eBPF"),
        }
    }

    fn flush(&self) {}
}

/// A record with names in place of the numbers of path and reason.
fn named(record: &str) -> String {
    let word = |word: &str| -> Option<String> {
        let (what, number) = word.split_once('=')?;
        let number: usize = number.parse().ok()?;
        let name = match what {
            "path" => Path::ALL.get(number)?.name(),
            "reason" => Reason::ALL.get(number)?.name(),
            _ => return None,
        };
        Some(format!("{what}={name}"))
    };
    let words: Vec<_> = record.split(' ').map(|w| word(w).unwrap_or_else(|| w.to_owned())).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_names() {
        let reason = Reason::ALL.iter().position(|reason| *reason == Reason::NoGateway).unwrap();
        let told =
            named(&format!("path=1 reason={reason} protocol=6 from 10.0.0.1 port 1 to 10.0.0.2 port 2"));
        assert_eq!(
            told,
            "path=from_net reason=no-gateway protocol=6 from 10.0.0.1 port 1 to 10.0.0.2 port 2"
        );
        assert_eq!(named("path=9 reason=x"), "path=9 reason=x");
    }
}
