//! The variables that the runtime sets, and what is wrong with them.

use std::collections::HashMap;

use coil_api::cni::{ErrorDocument, code};

use crate::error;

/// IFNAMSIZ of linux/if.h, without the final zero.
const MAX_IFNAME: usize = 15;

/// A verb of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    const ALL: [(Self, &str); 6] = [
        (Self::Add, "ADD"),
        (Self::Del, "DEL"),
        (Self::Check, "CHECK"),
        (Self::Gc, "GC"),
        (Self::Status, "STATUS"),
        (Self::Version, "VERSION"),
    ];

    /// As `CNI_COMMAND` has it.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL.iter().find(|(command, _)| *command == self).map_or("", |(_, name)| *name)
    }

    /// The variables that the verb must have, besides `CNI_COMMAND`.
    fn needs(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            // The namespace may be gone, and then the runtime does not name it.
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Self::Gc => &["CNI_PATH"],
            Self::Status | Self::Version => &[],
        }
    }
}

/// The `CNI_*` variables, each empty when it is not set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    command: String,
    pub(crate) container_id: String,
    pub(crate) netns: String,
    pub(crate) ifname: String,
    pub(crate) args: String,
    pub(crate) path: String,
}

impl Environment {
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let read = |name| variable(name).unwrap_or_default();
        Self {
            command: read("CNI_COMMAND"),
            container_id: read("CNI_CONTAINERID"),
            netns: read("CNI_NETNS"),
            ifname: read("CNI_IFNAME"),
            args: read("CNI_ARGS"),
            path: read("CNI_PATH"),
        }
    }

    /// The verb, when the variables that it needs are right.
    ///
    /// # Errors
    /// One that names everything that is missing or wrong.
    pub(crate) fn command(&self) -> Result<Command, ErrorDocument> {
        if self.command.is_empty() {
            return Err(invalid("environment variable CNI_COMMAND is missing"));
        }
        let known = Command::ALL.iter().find(|(_, name)| *name == self.command);
        let Some((command, _)) = known else {
            let names: Vec<&str> = Command::ALL.iter().map(|(_, name)| *name).collect();
            return Err(invalid(format!(
                "CNI_COMMAND {:?} is not one of {}",
                self.command,
                names.join(", ")
            )));
        };
        let problems = self.problems(*command);
        if problems.is_empty() { Ok(*command) } else { Err(invalid(problems.join("; "))) }
    }

    fn problems(&self, command: Command) -> Vec<String> {
        let value = |name: &str| match name {
            "CNI_CONTAINERID" => &self.container_id,
            "CNI_NETNS" => &self.netns,
            "CNI_IFNAME" => &self.ifname,
            _ => &self.path,
        };
        let needs = command.needs();
        let missing: Vec<&str> = needs.iter().copied().filter(|name| value(name).is_empty()).collect();
        let mut problems = Vec::new();
        if !missing.is_empty() {
            problems.push(format!("{} needs environment variables {}", command.name(), missing.join(", ")));
        }
        let present = |name| needs.contains(&name) && !value(name).is_empty();
        if present("CNI_CONTAINERID") && !is_plain(&self.container_id) {
            problems.push(format!(
                "CNI_CONTAINERID {:?} is not letters, digits, '_', '.' and '-', beginning with a letter or digit",
                self.container_id
            ));
        }
        if present("CNI_IFNAME") && !is_interface_name(&self.ifname) {
            problems.push(format!(
                "CNI_IFNAME {:?} is no name for an interface: 1 to {MAX_IFNAME} characters, no '/', ':' or space",
                self.ifname
            ));
        }
        problems
    }

    /// `KEY=VALUE;KEY=VALUE`. What is no pair is an error, except for DEL, which needs none of them.
    pub(crate) fn pairs(&self, command: Command) -> Result<HashMap<String, String>, ErrorDocument> {
        let mut pairs = HashMap::new();
        for pair in self.args.split(';').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some((key, value)) => drop(pairs.insert(key.to_owned(), value.to_owned())),
                None if command == Command::Del => {}
                None => return Err(invalid(format!("CNI_ARGS: {pair:?} is not KEY=VALUE"))),
            }
        }
        Ok(pairs)
    }
}

fn invalid(msg: impl Into<String>) -> ErrorDocument {
    error(code::INVALID_ENVIRONMENT, msg)
}

/// What the specification allows for container ids and for names of networks.
pub(crate) fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// What the kernel takes as a name (dev_valid_name of net/core/dev.c).
fn is_interface_name(name: &str) -> bool {
    (1..=MAX_IFNAME).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(command: &str, change: impl Fn(&mut Environment)) -> Environment {
        let mut environment = Environment {
            command: command.into(),
            container_id: "0123-abc_d.e".into(),
            netns: "/run/netns/p".into(),
            ifname: "eth0".into(),
            args: "IgnoreUnknown=1;K8S_POD_NAME=p=q;;K8S_POD_NAMESPACE=n".into(),
            path: "/opt/cni/bin".into(),
        };
        change(&mut environment);
        environment
    }

    fn refused(command: &str, change: impl Fn(&mut Environment)) -> String {
        let error = environment(command, change).command().unwrap_err();
        assert_eq!(error.code, code::INVALID_ENVIRONMENT);
        error.msg
    }

    #[test]
    fn each_verb_has_what_it_needs() {
        for (command, name) in Command::ALL {
            assert_eq!(environment(name, |_| {}).command().unwrap(), command);
        }
        let none =
            |e: &mut Environment| *e = Environment { command: e.command.clone(), ..Environment::default() };
        let all = "environment variables CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME";
        assert_eq!(refused("ADD", none), format!("ADD needs {all}"));
        assert_eq!(refused("CHECK", none), format!("CHECK needs {all}"));
        assert_eq!(refused("DEL", none), "DEL needs environment variables CNI_CONTAINERID, CNI_IFNAME");
        assert_eq!(refused("GC", none), "GC needs environment variables CNI_PATH");
        for name in ["STATUS", "VERSION"] {
            environment(name, none).command().unwrap();
        }
        environment("DEL", |e| e.netns.clear()).command().unwrap();
        assert!(refused("", none).contains("CNI_COMMAND"));
        assert!(refused("add", none).contains("ADD, DEL, CHECK, GC, STATUS, VERSION"));
    }

    #[test]
    fn everything_wrong_is_named_at_once() {
        let msg = refused("ADD", |e| {
            e.netns.clear();
            e.container_id = "-a".into();
            e.ifname = "a/b".into();
        });
        assert!(
            ["CNI_NETNS", "CNI_CONTAINERID", "CNI_IFNAME"].iter().all(|name| msg.contains(name)),
            "{msg}"
        );
    }

    #[test]
    fn names() {
        for id in ["", "-a", ".", "a:b", "a b", "a/b", "ä", "a\n"] {
            assert!(!is_plain(id), "{id:?}");
        }
        for id in ["a", "0", "A-b_c.d", &"f".repeat(64)] {
            assert!(is_plain(id), "{id:?}");
        }
        for name in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "sixteen-letters0"] {
            assert!(!is_interface_name(name), "{name:?}");
        }
        for name in ["eth0", "net1.100", "fifteen-letters"] {
            assert!(is_interface_name(name), "{name:?}");
        }
    }

    #[test]
    fn arguments() {
        let pairs = environment("ADD", |_| {}).pairs(Command::Add).unwrap();
        assert_eq!((pairs["K8S_POD_NAME"].as_str(), pairs.len()), ("p=q", 3));
        let bad = environment("ADD", |e| e.args = "A=1;B".into());
        let error = bad.pairs(Command::Add).unwrap_err();
        assert_eq!(error.code, code::INVALID_ENVIRONMENT);
        assert!(error.msg.contains("CNI_ARGS") && error.msg.contains("\"B\""), "{}", error.msg);
        assert_eq!(bad.pairs(Command::Del).unwrap().len(), 1);
    }
}
