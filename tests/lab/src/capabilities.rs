//! Root's capabilities, less those that a manifest does not give.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};
use nix::libc;

/// Names of the capabilities of Linux in the order of their numbers (`include/uapi/linux/capability.h`).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The capabilities that a program keeps, as a set of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept(u64);

/// Reads the names as manifests have them.
pub(crate) fn parse(names: &[String]) -> Result<Kept> {
    let mut bits = 0;
    for name in names {
        let number = NAMES.iter().position(|known| known == name);
        bits |= 1 << number.with_context(|| format!("{name:?} is no capability"))?;
    }
    Ok(Kept(bits))
}

impl Kept {
    /// Makes a command run with nothing else, whatever it runs in turn.
    pub(crate) fn apply(self, command: &mut Command) {
        let drop_others = move || {
            for number in (0..64_u32).filter(|number| self.0 & (1 << number) == 0) {
                // SAFETY: the call takes numbers alone.
                let done =
                    unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
                if done != 0 {
                    let error = std::io::Error::last_os_error();
                    // Beyond the last that this kernel has.
                    return if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) };
                }
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls on numbers; it allocates nothing and
        // takes no lock.
        unsafe { command.pre_exec(drop_others) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_has_what_is_named_and_no_more() {
        let kept = parse(&["NET_ADMIN".into(), "BPF".into()]).unwrap();
        assert_eq!(kept, Kept(1 << 12 | 1 << 39));
        assert!(parse(&["net_admin".into()]).unwrap_err().to_string().contains("no capability"));
        let mut command = Command::new("cat");
        command.arg("/proc/self/status");
        kept.apply(&mut command);
        let status = String::from_utf8(command.output().unwrap().stdout).unwrap();
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            let line = status.lines().find(|line| line.starts_with(set)).unwrap();
            assert_eq!(u64::from_str_radix(line[set.len()..].trim(), 16).unwrap(), kept.0, "{line}");
        }
    }
}
