//! Packets at a rate: 50,000 a second, as evenly as the machine lets them go.

use std::{
    fs, io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::machine;

/// Packets a millisecond.
pub const BURST: u32 = 50;
/// Of a thousand packets that were meant to go, so many must have gone in time.
const IN_TIME: u64 = 950;
/// How often a machine with other work may try.
const TRIES: usize = 3;

/// A stream: how far it is, and when it shall end.
#[derive(Debug, Default)]
pub struct Stream {
    stop: AtomicBool,
    sent: AtomicU64,
}

/// What became of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Packets that were sent.
    pub packets: u64,
    /// And how many of them a second.
    pub rate: u64,
}

impl Stream {
    /// Sends packets until [`Self::stop`]; `send` is given the number of each. What is late is made up for at once.
    ///
    /// # Errors
    /// What `send` fails with.
    pub fn run(&self, mut send: impl FnMut(u64) -> io::Result<()>) -> io::Result<Sent> {
        let (start, mut bursts) = (Instant::now(), 0u32);
        while !self.stop.load(Ordering::Relaxed) {
            for _ in 0..BURST {
                send(self.sent.load(Ordering::Relaxed))?;
                self.sent.fetch_add(1, Ordering::Relaxed);
            }
            bursts += 1;
            let next = start + Duration::from_millis(1) * bursts;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        let packets = self.sent.load(Ordering::Relaxed);
        let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        Ok(Sent { packets, rate: packets.saturating_mul(1000) / millis })
    }

    /// Ends the stream after the burst that is going out.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Sent {
    fn in_time(self) -> bool {
        machine::is_emulated() || self.rate >= u64::from(BURST) * IN_TIME
    }
}

/// Does a stream's test, and again while a machine with other work did not reach the rate: what it finds out holds
/// for every try.
///
/// # Errors
/// When the rate is never reached, or what `test` fails with.
pub fn at_full_rate(mut test: impl FnMut() -> Result<Sent>) -> Result<Sent> {
    let mut sent = test()?;
    for _ in 1..TRIES {
        println!("{} packets, {} a second", sent.packets, sent.rate);
        if sent.in_time() {
            break;
        }
        sent = test()?;
    }
    ensure!(sent.in_time(), "{} packets a second, {} were wanted", sent.rate, BURST * 1000);
    Ok(sent)
}

/// Datagrams of a family that came to sockets of this thread's network namespace, read or not.
///
/// # Errors
/// When the kernel does not say.
pub fn received_here(v4: bool) -> Result<u64> {
    if !v4 {
        let text = fs::read_to_string("/proc/thread-self/net/snmp6")?;
        let counts = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(char::is_whitespace)?;
            matches!(name, "Udp6InDatagrams" | "Udp6RcvbufErrors")
                .then(|| value.trim().parse::<u64>().ok())?
        });
        return Ok(counts.sum());
    }
    let text = fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let pairs = names.split_whitespace().zip(values.split_whitespace());
    let wanted = pairs.filter(|(name, _)| matches!(*name, "InDatagrams" | "RcvbufErrors"));
    Ok(wanted.filter_map(|(_, value)| value.parse::<u64>().ok()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_keeps_its_rate_and_counts_what_it_sent() {
        let (stream, mut numbers) = (Stream::default(), vec![]);
        let sent = stream.run(|number| {
            numbers.push(number);
            if number == 9_999 {
                stream.stop();
            }
            Ok(())
        });
        let sent = sent.unwrap();
        assert_eq!((sent.packets, numbers.len()), (10_000, 10_000));
        // How much slower it may be is the machine's affair; that a stream in time passes is told below.
        assert!(sent.rate <= 52_000, "{sent:?}");
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    }

    #[test]
    fn a_slow_machine_is_given_three_tries() {
        let mut tries = 0;
        let result = at_full_rate(|| {
            tries += 1;
            Ok(Sent { packets: 1000, rate: 1000 })
        });
        assert!(result.is_err());
        assert_eq!(tries, 3);
        let result = at_full_rate(|| Ok(Sent { packets: 1000, rate: 47_500 }));
        assert_eq!(result.unwrap().rate, 47_500);
    }
}
