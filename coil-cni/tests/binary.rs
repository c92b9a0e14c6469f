//! The plugin as it is installed: static, small, and quick to start. `cargo xtask test` builds it.

#![expect(clippy::unwrap_used, reason = "a test: what fails is a failure")]

#[path = "support/mod.rs"]
#[expect(dead_code, reason = "shared with the tests of the verbs")]
mod support;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use support::{Script, conf, run, serve, socket_in};

/// The most that the file may have.
const SIZE: usize = 4 << 20;
/// The most that an answer may take on a busy machine; on an idle one it is 5 ms.
const BOUND: Duration = Duration::from_millis(100);
/// How often it is tried: the quickest counts, as others use the machine too.
const TRIES: usize = 20;

/// Program header types and dynamic tags of elf.h.
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_NEEDED: u64 = 1;

fn installed() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_coil")).ancestors().nth(2).unwrap();
    let path = target.join("static").join("coil");
    assert!(path.exists(), "{} is not built: `cargo xtask test` builds it", path.display());
    path
}

/// A little-endian number of `size` bytes.
fn number(file: &[u8], at: u64, size: usize) -> u64 {
    let at = usize::try_from(at).unwrap();
    file[at..at + size].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Type, offset and size of each segment of a 64-bit file.
fn segments(file: &[u8]) -> Vec<(u64, u64, u64)> {
    assert_eq!((&file[..4], file[4], file[5]), (&b"\x7fELF"[..], 2, 1), "a 64-bit little-endian ELF file");
    let (start, size, count) = (number(file, 32, 8), number(file, 54, 2), number(file, 56, 2));
    (0..count)
        .map(|i| start + i * size)
        .map(|at| (number(file, at, 4), number(file, at + 8, 8), number(file, at + 32, 8)))
        .collect()
}

#[test]
fn it_runs_anywhere_and_is_small() {
    let file = std::fs::read(installed()).unwrap();
    assert!(file.len() < SIZE, "{} bytes", file.len());
    let segments = segments(&file);
    assert!(segments.iter().all(|(kind, ..)| *kind != PT_INTERP), "it needs no loader");
    for (_, start, size) in segments.iter().filter(|(kind, ..)| *kind == PT_DYNAMIC) {
        // A position-independent program relocates itself by its dynamic section.
        let tags = (0..size / 16).map(|i| number(&file, start + i * 16, 8));
        assert!(tags.into_iter().all(|tag| tag != DT_NEEDED), "it needs no library");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_answers_at_once() {
    let (dir, program) = (tempfile::tempdir().unwrap(), installed());
    let socket = socket_in(&dir);
    let _asked = serve(&socket, Script::default());
    tokio::task::spawn_blocking(move || {
        for (verb, stdin) in [("VERSION", String::new()), ("STATUS", conf("1.1.0", &socket))] {
            let times = (0..TRIES).map(|_| {
                let started = Instant::now();
                let (ok, document) = run(&program, verb, &stdin, &[]);
                assert!(ok, "{verb}: {document}");
                started.elapsed()
            });
            let mut times: Vec<Duration> = times.collect();
            times.sort();
            println!("{verb}: quickest {:?}, median {:?}", times[0], times[TRIES / 2]);
            assert!(times[0] < BOUND, "{verb} takes {:?} at best", times[0]);
        }
    })
    .await
    .unwrap();
}
