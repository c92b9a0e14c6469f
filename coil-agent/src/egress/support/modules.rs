//! Loading a module of the running kernel from the node's `/lib/modules`, without modprobe.
//!
//! modprobe's settings do not count here: neither options nor lists of what must not be loaded.

use std::{
    ffi::CStr,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::{
    kmod::{ModuleInitFlags, finit_module},
    libc,
};

/// Where a node has its modules, below a folder for each release.
const MODULES: &str = "/lib/modules";
/// What each module depends on.
const LIST: &str = "modules.dep";
/// `MODULE_INIT_COMPRESSED_FILE`: the kernel unpacks the file itself. Since Linux 5.17, with `CONFIG_MODULE_DECOMPRESS`.
const COMPRESSED: libc::c_int = 4;
const NO_OPTIONS: &CStr = c"";

/// Why a module cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No list of modules.
    #[error("cannot read {}: {source}", path.display())]
    NoList {
        /// The list.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The list does not have it.
    #[error("{} has no module {module}", path.display())]
    NotListed {
        /// The list.
        path: PathBuf,
        /// The module's name.
        module: String,
    },
    /// The kernel refused it.
    #[error("cannot load {}: {source}{}", path.display(), hint(path, source))]
    Refused {
        /// The module's file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn hint(path: &Path, source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => " (coild needs the capability SYS_MODULE for it)",
        Some(libc::EINVAL | libc::EOPNOTSUPP) if is_compressed(path) => {
            " (this kernel does not unpack such modules: load it by the node's own modprobe)"
        }
        _ => "",
    }
}

/// Loads a module and what it depends on. One that is there already is as good as loaded.
///
/// # Errors
/// When it is not there, or the kernel refuses.
pub fn load(module: &str) -> Result<(), LoadError> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let dir = Path::new(MODULES).join(release.trim());
    let path = dir.join(LIST);
    let list =
        fs::read_to_string(&path).map_err(|source| LoadError::NoList { path: path.clone(), source })?;
    let Some(files) = in_order(&list, module) else {
        return Err(LoadError::NotListed { path, module: module.to_owned() });
    };
    files.into_iter().map(|file| dir.join(file)).try_for_each(|path| match insert(&path) {
        Err(source) if source.raw_os_error() != Some(libc::EEXIST) => {
            Err(LoadError::Refused { path, source })
        }
        _ => Ok(()),
    })
}

fn insert(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let flags = if is_compressed(path) { COMPRESSED } else { 0 };
    Ok(finit_module(&file, NO_OPTIONS, ModuleInitFlags::from_bits_retain(flags.cast_unsigned()))?)
}

fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension != "ko")
}

/// The files of a module and of what it depends on, in the order to load them; none when the list does not have it.
fn in_order<'a>(list: &'a str, module: &str) -> Option<Vec<&'a str>> {
    let (file, others) =
        list.lines().filter_map(|line| line.split_once(':')).find(|(file, _)| name(file) == module)?;
    // A line begins with what is needed directly and ends with what everything else needs.
    Some(others.split_whitespace().rev().chain([file]).collect())
}

/// The name of a module by its file, as `kernel/net/ipv4/fou.ko.xz`.
fn name(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or_default();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
kernel/net/ipv4/ip_tunnel.ko.xz:
kernel/net/ipv4/fou.ko.xz: kernel/net/ipv4/ip_tunnel.ko.xz kernel/net/ipv4/udp_tunnel.ko.xz
kernel/net/ipv6/fou6.ko: kernel/net/ipv4/fou.ko kernel/net/ipv6/ip6-tunnel.ko kernel/net/ipv6/tunnel6.ko
kernel/net/ipv6/ip6-tunnel.ko: kernel/net/ipv6/tunnel6.ko
nonsense
";

    #[test]
    fn what_a_module_depends_on_comes_first() {
        assert_eq!(in_order(LIST, "ip_tunnel").unwrap(), ["kernel/net/ipv4/ip_tunnel.ko.xz"]);
        assert_eq!(
            in_order(LIST, "fou6").unwrap(),
            [
                "kernel/net/ipv6/tunnel6.ko",
                "kernel/net/ipv6/ip6-tunnel.ko",
                "kernel/net/ipv4/fou.ko",
                "kernel/net/ipv6/fou6.ko"
            ]
        );
    }

    #[test]
    fn names_are_whole_and_have_no_hyphen() {
        assert_eq!(in_order(LIST, "ip6_tunnel").unwrap().last(), Some(&"kernel/net/ipv6/ip6-tunnel.ko"));
        for absent in ["fo", "udp_tunnel", "nonsense", ""] {
            assert_eq!(in_order(LIST, absent), None, "{absent}");
        }
        assert_eq!(in_order("", "fou"), None);
    }

    #[test]
    fn files_that_the_kernel_unpacks() {
        for (file, compressed) in
            [("a/fou.ko", false), ("a/fou.ko.xz", true), ("a/fou.ko.zst", true), ("a/fou.ko.gz", true)]
        {
            assert_eq!(is_compressed(Path::new(file)), compressed, "{file}");
        }
    }

    #[test]
    fn a_refusal_names_the_way_out() {
        let refused = |path: &str, errno| {
            let source = io::Error::from_raw_os_error(errno);
            LoadError::Refused { path: path.into(), source }.to_string()
        };
        assert!(refused("/lib/modules/6.1/fou.ko", libc::EPERM).contains("SYS_MODULE"));
        assert!(refused("/lib/modules/6.1/fou.ko.xz", libc::EOPNOTSUPP).contains("modprobe"));
        assert!(!refused("/lib/modules/6.1/fou.ko", libc::EINVAL).contains("modprobe"));
    }
}
