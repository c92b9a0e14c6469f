//! What a gateway pod says about itself, through its environment.

use std::net::IpAddr;

use coil_api::names::{ENV_EGRESS_NAME, ENV_POD_ADDRESSES, ENV_POD_NAMESPACE};

/// What a gateway pod knows about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Namespace of the pod and of its Egress.
    pub namespace: String,
    /// The Egress it serves.
    pub egress: String,
    /// The pod's name, for metrics; empty when unknown.
    pub pod: String,
    /// The addresses that clients are translated to.
    pub addresses: Vec<IpAddr>,
}

/// An environment that no gateway can work in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A needed variable is absent or empty.
    #[error("environment variable {name} is not set: it must be {meaning}")]
    Missing {
        /// The variable.
        name: &'static str,
        /// What belongs in it.
        meaning: &'static str,
    },
    /// An item of the addresses is none.
    #[error("{ENV_POD_ADDRESSES}: {item:?} is not an IP address: it must be the pod's status.podIPs")]
    Address {
        /// The item.
        item: String,
    },
}

impl Settings {
    /// Reads the environment through a function.
    ///
    /// # Errors
    /// When a variable is missing or wrong; the message names it.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let needed = |name, meaning| {
            var(name).filter(|v| !v.is_empty()).ok_or(SettingsError::Missing { name, meaning })
        };
        let namespace = needed(ENV_POD_NAMESPACE, "the pod's namespace")?;
        let egress = needed(ENV_EGRESS_NAME, "the name of the Egress")?;
        let addresses = needed(ENV_POD_ADDRESSES, "the pod's status.podIPs, comma separated")?;
        let addresses = addresses
            .split(',')
            .map(str::trim)
            .map(|item| item.parse().map_err(|_| SettingsError::Address { item: item.to_owned() }));
        Ok(Self {
            addresses: addresses.collect::<Result<_, _>>()?,
            pod: var("HOSTNAME").unwrap_or_default(),
            namespace,
            egress,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::from_env(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn a_dual_stack_pod() {
        let settings = read(&[
            ("COIL_POD_NAMESPACE", "internet"),
            ("COIL_EGRESS_NAME", "nat"),
            ("COIL_POD_ADDRESSES", "10.64.0.3,fd64::3"),
            ("HOSTNAME", "nat-7d-x"),
        ])
        .unwrap();
        assert_eq!(settings.addresses, ["10.64.0.3".parse::<IpAddr>().unwrap(), "fd64::3".parse().unwrap()]);
        assert_eq!((settings.namespace.as_str(), settings.egress.as_str()), ("internet", "nat"));
        assert_eq!(settings.pod, "nat-7d-x");
    }

    #[test]
    fn errors_name_the_variable() {
        let namespace = ("COIL_POD_NAMESPACE", "internet");
        let egress = ("COIL_EGRESS_NAME", "nat");
        for (vars, part) in [
            (&[][..], "COIL_POD_NAMESPACE"),
            (&[("COIL_POD_NAMESPACE", "")], "COIL_POD_NAMESPACE"),
            (&[namespace], "COIL_EGRESS_NAME"),
            (&[namespace, egress], "COIL_POD_ADDRESSES"),
            (&[namespace, egress, ("COIL_POD_ADDRESSES", "10.0.0.1,")], "COIL_POD_ADDRESSES"),
            (&[namespace, egress, ("COIL_POD_ADDRESSES", "10.0.0.256")], "10.0.0.256"),
        ] {
            let error = read(vars).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
