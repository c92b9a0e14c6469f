//! A debug build of the programs tells of its packets, as much as its map says at that moment.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::Array,
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use aya_log::EbpfLogger;
use coil_cases::Case;
use coil_packet::{Path as Program, Reason};

/// What was told, with its level.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(log::Level, String)>>>);

impl log::Log for Told {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.push((record.level(), record.args().to_string()));
    }

    fn flush(&self) {}
}

/// The debug build, where `cargo xtask test` puts it.
fn load() -> Result<Ebpf> {
    let own = std::env::current_exe()?;
    // <target>/<profile>/deps/<test>
    let target = own.ancestors().nth(3).context("a target directory")?;
    let path = target.join("bpf/coil-ebpf-log");
    let object = std::fs::read(&path)
        .with_context(|| format!("{} is not built: `cargo xtask test` builds it", path.display()))?;
    Ok(EbpfLoader::new().load(&object)?)
}

/// Frames may come in on any link: the loopback link's are for everybody.
fn run(ebpf: &Ebpf, case: &Case) -> Result<()> {
    let program: &SchedClassifier =
        ebpf.program(case.path.name()).context("a program")?.try_into().context("a classifier")?;
    let frame = [&[0; 6], &case.frame[6..]].concat();
    let mut output = vec![0; frame.len() + 128];
    program.test_run(TestRunOptions {
        data_in: Some(&frame),
        data_out: Some(&mut output),
        ..TestRunOptions::default()
    })?;
    Ok(())
}

#[test]
fn a_debug_build_tells_what_it_is_asked_for() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this loads eBPF programs: run it as root");
    ensure!(Path::new("/sys/fs/bpf").exists(), "no bpf file system");
    let mut ebpf = load()?;
    for program in Program::ALL {
        let code: &mut SchedClassifier = ebpf.program_mut(program.name()).context("a program")?.try_into()?;
        code.load().with_context(|| format!("the kernel refuses the debug build of {}", program.name()))?;
    }
    let told = Told::default();
    let mut records = EbpfLogger::init_with_logger(&mut ebpf, told.clone())?;
    let mut level: Array<_, u32> = ebpf.take_map("coil_log").context("no coil_log")?.try_into()?;
    for v4 in [true, false] {
        // Without pods and configuration every packet is the kernel's.
        let cases = coil_cases::all();
        let of = |path: Program| {
            let tcp =
                |case: &&Case| case.path == path && case.net.is_v4() == v4 && case.reason == Reason::ToPod;
            cases.iter().find(tcp).context("a case")
        };
        for (path, source) in [(Program::FromPod, "10.64.0."), (Program::FromNet, "10.64.1.")] {
            let case = of(path)?;
            for (wanted, records_of_it) in [(0, 0), (2, 0), (3, 0), (4, 1), (0, 0)] {
                level.set(0, wanted, 0)?;
                run(&ebpf, case)?;
                records.flush();
                let heard = std::mem::take(&mut *told.0.lock().unwrap_or_else(PoisonError::into_inner));
                ensure!(heard.len() == records_of_it, "{}, level {wanted}: {heard:?}", case.name);
                let Some((level, text)) = heard.first() else { continue };
                let begins = format!("path={} reason=", path as u8);
                ensure!(*level == log::Level::Debug && text.starts_with(&begins), "{heard:?}");
                ensure!(text.contains(if v4 { source } else { "fd64::" }), "{heard:?}");
            }
        }
    }
    Ok(())
}
