//! What can run in a guest: the one table, and how an entry of it becomes commands.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::cargo;
use crate::{built::Built, run};

/// Tests that are chosen together, by `--only GROUP`.
pub(super) struct Group {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    payloads: &'static [Payload],
}

enum Payload {
    /// The tests of a package whose names contain the text.
    Tests { package: &'static str, containing: &'static str },
    /// A script of tests/vm, once for each list of arguments. It prints what went wrong.
    Script { file: &'static str, cases: &'static [&'static [&'static str]] },
    /// A program of a package that lists its tests and takes their names, as a test program does.
    Listing { package: &'static str, program: &'static str },
    /// A program, once. It is built as the package of that name.
    Program { package: &'static str },
}

/// Every group. A new package with tests that need a kernel is one line here.
pub(super) const GROUPS: &[Group] = &[
    Group {
        name: "probe",
        about: "what the kernel offers of what Coil uses",
        payloads: &[Payload::Program { package: "coil-kernel-probe" }],
    },
    Group {
        name: "fou",
        about: "egress without eBPF: FOU links, ipip, ip6tnl, nftables masquerade",
        payloads: &[Payload::Script {
            file: "tests/vm/fou.sh",
            cases: &[&["modules"], &["v4", "fixed"], &["v4", "auto"], &["v6", "fixed"], &["v6", "auto"]],
        }],
    },
    Group {
        name: "support",
        about: "what egress by the kernel needs is found, and its modules are loaded as coild does it",
        payloads: &[Payload::Tests { package: "coil-agent", containing: "support::" }],
    },
    Group {
        name: "pairing",
        about: "clients and gateways of both kinds, in every pairing",
        payloads: &[Payload::Listing { package: "coil-kernel-tests", program: "coil-pairing" }],
    },
    Group {
        name: "netns",
        about: "network namespaces and links",
        payloads: &[Payload::Tests { package: "coil-netns", containing: "" }],
    },
    Group {
        name: "pods",
        about: "pods' networks: made, found again and removed, in each family",
        payloads: &[
            Payload::Tests { package: "coil-agent", containing: "pods::" },
            Payload::Tests { package: "coil-agent", containing: "closed::" },
        ],
    },
    Group {
        name: "senders",
        about: "who may send to a pod whose kernel does its egress",
        payloads: &[
            Payload::Tests { package: "coil-agent", containing: "peers::" },
            Payload::Tests { package: "coil-agent", containing: "senders::" },
        ],
    },
    Group {
        name: "takeover",
        about: "a node of the Go version, with FOU links in its clients, is taken over",
        payloads: &[Payload::Tests { package: "coil-node-tests", containing: "go_version" }],
    },
    Group {
        name: "kernel",
        about: "the verifier, and every packet case through the TC programs",
        payloads: &[Payload::Tests { package: "coil-kernel-tests", containing: "" }],
    },
    Group {
        name: "coild",
        about: "the built coild on the kernel: what it attaches, and that packets go that way",
        payloads: &[Payload::Tests { package: "coil-node-tests", containing: "auto_" }],
    },
    Group {
        name: "lab",
        about: "clusters whose egress is the kernel's alone: the demo, users' end-to-end tests, forgers",
        payloads: &[Payload::Tests { package: "coil-lab", containing: "by_the_kernel" }],
    },
];

/// What `--only` says: a group, and a part of a test's name.
#[derive(Clone)]
pub(super) struct Only {
    group: String,
    containing: String,
}

impl std::str::FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (group, containing) = text.split_once('/').unwrap_or((text, ""));
        if GROUPS.iter().all(|known| known.name != group) {
            let names: Vec<&str> = GROUPS.iter().map(|group| group.name).collect();
            return Err(format!("there is no group {group}: the groups are {}", names.join(", ")));
        }
        Ok(Self { group: group.into(), containing: containing.into() })
    }
}

/// One command for the guest.
pub(super) struct Entry {
    /// Before the names of its tests: `GROUP/PACKAGE::` or, alone, the one test's name.
    pub(super) prefix: String,
    /// The tests that it must report; empty when the command is itself one test.
    pub(super) tests: Vec<String>,
    pub(super) folder: PathBuf,
    pub(super) command: Vec<String>,
}

impl Entry {
    /// A command of the user's.
    pub(super) fn command(command: &[String]) -> Self {
        let folder = std::env::current_dir().unwrap_or_else(|_| run::root().into());
        Self { prefix: command.join(" "), tests: Vec::new(), folder, command: command.into() }
    }

    /// The names that results are reported under.
    pub(super) fn names(&self) -> Vec<String> {
        if self.tests.is_empty() {
            return vec![self.prefix.clone()];
        }
        self.tests.iter().map(|test| format!("{}{test}", self.prefix)).collect()
    }
}

/// Builds what is chosen and finds its tests. Fails when a choice, or a line of the table, has none.
pub(super) fn entries(only: &[Only]) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for group in GROUPS {
        let chosen: Vec<&Only> = only.iter().filter(|only| only.group == group.name).collect();
        if !only.is_empty() && chosen.is_empty() {
            continue;
        }
        let wanted =
            |name: &str| chosen.is_empty() || chosen.iter().any(|only| name.contains(&only.containing));
        let found = of_group(group, &wanted)?;
        if found.is_empty() {
            bail!("no test of group {} is chosen: see `cargo xtask vm --list`", group.name);
        }
        entries.extend(found);
    }
    Ok(entries)
}

fn of_group(group: &Group, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for payload in group.payloads {
        entries.extend(of(group.name, payload, wanted)?);
    }
    Ok(entries)
}

fn of(group: &str, payload: &Payload, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<Entry>> {
    match payload {
        Payload::Script { file, cases } => {
            let script = run::root().join(file);
            let stem = script.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            // A script that has the group's own name needs no second one.
            let stem = if stem == group { String::new() } else { format!("{stem}-") };
            let all = cases.iter().map(|case| (case.join("-"), case));
            Ok(all
                .filter(|(name, _)| wanted(name))
                .map(|(name, case)| Entry {
                    prefix: format!("{group}/{stem}{name}"),
                    tests: Vec::new(),
                    folder: run::root().into(),
                    command: ["sh".into(), script.display().to_string()]
                        .into_iter()
                        .chain(case.iter().map(|word| (*word).to_owned()))
                        .collect(),
                })
                .collect())
        }
        Payload::Program { package } if !wanted(package) => Ok(Vec::new()),
        Payload::Program { package } => {
            let program = |built: Built| Entry {
                prefix: format!("{group}/{}", built.target),
                tests: Vec::new(),
                folder: built.folder,
                command: vec![built.path],
            };
            Ok(cargo::programs(package)?.into_iter().map(program).collect())
        }
        Payload::Listing { package, program } => {
            let programs = cargo::programs(package)?;
            let Some(built) = programs.into_iter().find(|built| built.target == *program) else {
                bail!("group {group}: {package} has no program {program}");
            };
            let tests: Vec<String> = built.names()?.into_iter().filter(|test| wanted(test)).collect();
            if tests.is_empty() {
                return Ok(Vec::new());
            }
            let command = [built.path].into_iter().chain(tests.iter().cloned()).collect();
            Ok(vec![Entry { prefix: format!("{group}/"), tests, folder: built.folder, command }])
        }
        Payload::Tests { package, containing } => {
            let mut entries = Vec::new();
            let mut any = false;
            for built in cargo::tests(package)? {
                let mut tests = built.names()?;
                tests.retain(|test| test.contains(containing));
                any |= !tests.is_empty();
                tests.retain(|test| wanted(test));
                if !tests.is_empty() {
                    entries.push(cargo::entry(built, group, package, tests));
                }
            }
            if !any {
                bail!("group {group}: {package} has no test with {containing:?} in its name");
            }
            Ok(entries)
        }
    }
}

/// Prints every group and its tests.
pub(super) fn list() -> Result<()> {
    for group in GROUPS {
        println!("{}: {}", group.name, group.about);
        for name in of_group(group, &|_| true)?.iter().flat_map(Entry::names) {
            println!("  {name}");
        }
    }
    Ok(())
}
