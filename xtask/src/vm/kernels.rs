//! Debian's kernels: found with apt, unpacked into the cache, never installed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{clear, tools};
use crate::run;

/// A kernel that Debian maintains.
pub(super) struct Known {
    /// As `--kernel` takes it.
    pub(super) name: &'static str,
    /// Debian's release that has it.
    pub(super) suite: &'static str,
}

/// Every kernel that tests are run on, oldest first.
pub(super) const KNOWN: [Known; 4] = [
    Known { name: "5.10", suite: "bullseye" },
    Known { name: "6.1", suite: "bookworm" },
    Known { name: "6.12", suite: "trixie" },
    Known { name: "newest", suite: "sid" },
];

/// The package that depends on a release's current kernel.
const META_PACKAGE: &str = "linux-image-amd64";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What networking and the guest's own devices need: a tenth of all modules.
const MODULES: [&str; 9] = [
    "kernel/arch",
    "kernel/crypto",
    "kernel/drivers/block",
    "kernel/drivers/char",
    "kernel/drivers/net",
    "kernel/drivers/virtio",
    "kernel/fs",
    "kernel/lib",
    "kernel/net",
];
const NOT_MODULES: [&str; 2] = ["kernel/drivers/net/ethernet", "kernel/drivers/net/wireless"];

/// A kernel that is ready to boot.
pub(super) struct Kernel {
    pub(super) name: &'static str,
    pub(super) image: PathBuf,
    /// The package it came from, with its version.
    pub(super) package: String,
}

impl Known {
    /// Takes the kernel from the cache, or fetches Debian's current one into it.
    pub(super) fn get(&'static self, refresh: bool) -> Result<Kernel> {
        let cache = tools::cache()?;
        let lock = File::create(cache.join("lock")).context("cannot make the lock of the kernel cache")?;
        lock.lock().context("cannot take the lock of the kernel cache")?;
        let dir = cache.join("kernels").join(self.name);
        if refresh || !dir.exists() {
            self.fetch(&cache, &dir).with_context(|| format!("cannot fetch the {} kernel", self.name))?;
        }
        let package = fs::read_to_string(dir.join("package"))
            .with_context(|| format!("{} has no kernel: run again with --refresh", dir.display()))?;
        Ok(Kernel { name: self.name, image: image(&dir)?, package: package.trim().to_owned() })
    }

    fn fetch(&self, cache: &Path, dir: &Path) -> Result<()> {
        let apt = Apt::of(self.suite, cache)?;
        run::run(apt.command("apt-get").args(["--quiet", "update"]))?;
        let depends = apt.depends(META_PACKAGE)?;
        let image = depends
            .iter()
            .find(|name| name.starts_with("linux-image-"))
            .with_context(|| format!("{META_PACKAGE} of {} names no kernel", self.suite))?;
        let release = image.trim_start_matches("linux-image-");
        // From 7.0 on the image and the modules are packages of their own.
        let mut packages = vec![image.clone()];
        packages.extend(apt.depends(image)?.into_iter().filter(|name| name.ends_with(release)));

        let new = cache.join("kernels").join(format!("{}.new", self.name));
        clear(&new)?;
        let debs = new.join("debs");
        fs::create_dir_all(&debs).with_context(|| format!("cannot make {}", debs.display()))?;
        run::run(apt.command("apt-get").args(["--quiet", "download"]).args(&packages).current_dir(&debs))?;
        unpack(&debs, &new, release)?;
        // NAME_VERSION_amd64.deb, as apt writes it.
        let deb = packages_in(&debs)?.into_iter().find(|deb| deb.starts_with(image.as_str()));
        let package = deb.unwrap_or_default().split('_').take(2).collect::<Vec<_>>().join(" ");
        clear(&debs)?;
        fs::write(new.join("package"), package).context("cannot write which package the kernel is from")?;
        clear(dir)?;
        fs::rename(&new, dir).with_context(|| format!("cannot make {}", dir.display()))
    }
}

/// An apt of our own: one suite, its own lists and downloads; the machine's settings, such as a
/// proxy, but none of its sources.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn of(suite: &str, cache: &Path) -> Result<Self> {
        if !Path::new(KEYRING).exists() {
            bail!("{KEYRING} is missing, and with it Debian's keys: install debian-archive-keyring");
        }
        let dir = cache.join("apt").join(suite);
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub))
                .with_context(|| format!("cannot make {}/{sub}", dir.display()))?;
        }
        let list = dir.join("sources.list");
        let source = format!("deb [arch=amd64 signed-by={KEYRING}] {} {suite} main\n", mirror()?);
        fs::write(&list, source).with_context(|| format!("cannot write {}", list.display()))?;
        let dir = dir.display();
        let options = [
            format!("Dir::State={dir}/state"),
            "Dir::State::status=/dev/null".into(),
            format!("Dir::Cache={dir}/cache"),
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".into(),
            "APT::Architecture=amd64".into(),
            // Downloads go into the caller's cache, where apt's own user may not be able to write.
            "APT::Sandbox::User=root".into(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
            "Acquire::Languages=none".into(),
        ];
        Ok(Self { options: options.into_iter().flat_map(|option| ["-o".into(), option]).collect() })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).env("LC_ALL", "C");
        command
    }

    /// The packages that a package depends on.
    fn depends(&self, package: &str) -> Result<Vec<String>> {
        let text = run::output(self.command("apt-cache").args(["depends", package]))?;
        Ok(text
            .lines()
            .filter_map(|line| line.trim().trim_start_matches('|').strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }
}

/// Where this machine gets Debian from.
fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var("COIL_DEBIAN_MIRROR") {
        return Ok(mirror);
    }
    let format = ["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"];
    let text = run::output(Command::new("apt-get").args(format))?;
    text.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian")).map(str::to_owned).context(
        "apt has no source of Debian itself: set COIL_DEBIAN_MIRROR to the address of a mirror, ending in /debian",
    )
}

fn packages_in(debs: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(debs).with_context(|| format!("cannot read {}", debs.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name.ends_with(".deb"));
    Ok(names)
}

/// Unpacks what is needed of the image and the modules, wherever a release keeps them, as
/// `vmlinuz-RELEASE` and `lib/modules/RELEASE`: the layout that virtme-ng looks for.
fn unpack(debs: &Path, dir: &Path, release: &str) -> Result<()> {
    let root = debs.join("root");
    for deb in packages_in(debs)? {
        run::run(Command::new("dpkg-deb").arg("--extract").arg(debs.join(deb)).arg(&root))?;
    }
    let places = [root.join("lib/modules").join(release), root.join("usr/lib/modules").join(release)];
    let from =
        places.iter().find(|place| place.join("kernel").is_dir()).context("the package has no modules")?;
    let images = [root.join("boot").join(format!("vmlinuz-{release}")), from.join("vmlinuz")];
    let image = images.iter().find(|image| image.is_file()).context("the package has no kernel")?;
    take(image, &dir.join(format!("vmlinuz-{release}")))?;

    let to = dir.join("lib/modules").join(release);
    for path in NOT_MODULES {
        clear(&from.join(path))?;
    }
    for path in MODULES.into_iter().filter(|path| from.join(path).is_dir()) {
        take(&from.join(path), &to.join(path))?;
    }
    for file in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        take(&from.join(file), &to.join(file))?;
    }
    // The guest's first steps cannot read compressed modules.
    let mut decompress = Command::new("find");
    decompress.arg(&to).args(["-name", "*.ko.xz", "-exec", "xz", "--decompress", "{}", "+"]);
    run::run(&mut decompress)?;
    run::run(Command::new("depmod").arg("-b").arg(dir).arg(release))
}

fn take(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    fs::rename(from, to).with_context(|| format!("cannot take {} out of the package", from.display()))
}

/// The one image in a kernel's folder.
fn image(dir: &Path) -> Result<PathBuf> {
    let files = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut images = files
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")));
    images.next().with_context(|| format!("{} has no kernel: run again with --refresh", dir.display()))
}
