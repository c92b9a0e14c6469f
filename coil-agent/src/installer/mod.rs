//! coil-installer: puts the `coil` plugin and its network configuration on a node.
//!
//! ```text
//! validate configuration and source ─▶ plugin (temporary file, fsync, rename)
//!                                   ─▶ configuration (the same)
//!                                   ─▶ remove Coil's own older configuration
//! ```
//!
//! The plugin comes first: a runtime that sees the configuration finds the plugin. A step that
//! fails leaves what was there before. Other plugins' files are never touched.

mod chain;
mod files;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use chain::Chained;
use coil_api::names::DEFAULT_SOCKET;
use serde_json::Value;

pub use files::FileError;

/// Where things are and go; each is an environment variable of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `CNI_CONF_NAME`: file name of the configuration.
    pub conf_name: String,
    /// `CNI_ETC_DIR`: folder of the configuration.
    pub etc_dir: PathBuf,
    /// `CNI_BIN_DIR`: folder of the plugin.
    pub bin_dir: PathBuf,
    /// `COIL_PATH`: the plugin to install.
    pub coil_path: PathBuf,
    /// `CNI_NETCONF`, else the content of `CNI_NETCONF_FILE`; with `CNI_CHAIN=true` neither.
    pub netconf: Netconf,
}

/// Where the network configuration comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Netconf {
    /// The text itself.
    Text(String),
    /// A file with the text.
    File(PathBuf),
    /// `CNI_CHAIN`: the configuration that is there, with coil after its plugins.
    Chain {
        /// `CNI_CHAIN_NAME`: which one, by its network's name or its file's; else the one that comes first.
        after: Option<String>,
    },
}

/// What an installation changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Files written, in order; those that were right already are not among them.
    pub written: Vec<PathBuf>,
    /// Coil's older configurations that were removed.
    pub removed: Vec<PathBuf>,
}

/// Installing failed; what was there before is still there.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A needed setting is missing or wrong.
    #[error("{variable}: {problem}")]
    Setting {
        /// The environment variable.
        variable: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The network configuration is not one.
    #[error("the network configuration ({origin}) {problem}")]
    Netconf {
        /// Where it came from.
        origin: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Settings {
    /// Reads the settings through `variable`, which looks an environment variable up.
    ///
    /// # Errors
    /// When the network configuration is given nowhere, or a name is none.
    pub fn from_env(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, InstallError> {
        let text = |name: &'static str, default: &str| match variable(name) {
            None => Ok(default.to_owned()),
            Some(value) => value
                .into_string()
                .map_err(|_| InstallError::Setting { variable: name, problem: "is not UTF-8".into() }),
        };
        let conf_name = text("CNI_CONF_NAME", "10-coil.conflist")?;
        if conf_name.contains('/') || !conf_name.ends_with(".conflist") {
            let problem = format!("{conf_name:?} is not a file name that ends in .conflist");
            return Err(InstallError::Setting { variable: "CNI_CONF_NAME", problem });
        }
        let given = |name| variable(name).filter(|value| !value.is_empty());
        let chain = text("CNI_CHAIN", "false")?;
        let after = Some(text("CNI_CHAIN_NAME", "")?).filter(|name| !name.is_empty());
        if after.is_some() && chain != "true" {
            let problem = "says which plugin to come after, which CNI_CHAIN=true alone does".into();
            return Err(InstallError::Setting { variable: "CNI_CHAIN_NAME", problem });
        }
        let netconf = match (given("CNI_NETCONF"), given("CNI_NETCONF_FILE")) {
            _ if chain == "true" => Netconf::Chain { after },
            _ if chain != "false" => {
                let problem = format!("{chain:?} is neither true nor false");
                return Err(InstallError::Setting { variable: "CNI_CHAIN", problem });
            }
            // The text wins, as in Coil v2: manifests may set both.
            (Some(_), _) => Netconf::Text(text("CNI_NETCONF", "")?),
            (None, Some(file)) => Netconf::File(file.into()),
            (None, None) => {
                let problem =
                    "not set, and CNI_NETCONF_FILE neither: one of them has the network configuration";
                return Err(InstallError::Setting { variable: "CNI_NETCONF", problem: problem.into() });
            }
        };
        Ok(Self {
            conf_name,
            etc_dir: text("CNI_ETC_DIR", "/host/etc/cni/net.d")?.into(),
            bin_dir: text("CNI_BIN_DIR", "/host/opt/cni/bin")?.into(),
            coil_path: text("COIL_PATH", "/usr/local/coil/coil")?.into(),
            netconf,
        })
    }
}

/// Installs the plugin and its configuration.
///
/// # Errors
/// When a setting, the configuration, or a file operation is at fault; nothing is half-written.
pub fn install(settings: &Settings) -> Result<Installed, InstallError> {
    let target = settings.etc_dir.join(&settings.conf_name);
    let netconf = match &settings.netconf {
        Netconf::Text(text) => Some((text.clone(), 0o644, "CNI_NETCONF".to_owned())),
        Netconf::File(path) => Some((files::read_text(path)?, 0o644, path.display().to_string())),
        Netconf::Chain { after } => {
            match chain::look(&settings.etc_dir, &target, after.as_deref(), DEFAULT_SOCKET)? {
                Chained::Copy { list, mode } => Some((list, mode, "CNI_CHAIN".to_owned())),
                Chained::ByHand => None,
            }
        }
    };
    let network = netconf.as_ref().map(|(netconf, _, origin)| network_of(netconf, origin)).transpose()?;
    let plugin = files::read(&settings.coil_path)?;
    files::make_folder(&settings.bin_dir)?;
    files::make_folder(&settings.etc_dir)?;

    let mut installed = Installed::default();
    let binary = settings.bin_dir.join("coil");
    if files::replace(&binary, &plugin, 0o755)? {
        installed.written.push(binary);
    }
    // Without one, the list that is there has coil in it already.
    let Some(((netconf, mode, _), network)) = netconf.zip(network) else {
        if let Some(copy) = chain::stale(&target) {
            files::remove(&copy)?;
            installed.removed.push(copy);
        }
        return Ok(installed);
    };
    if files::replace(&target, netconf.as_bytes(), mode)? {
        installed.written.push(target.clone());
    }
    for other in files::list(&settings.etc_dir)? {
        if other != target && is_our_older(&other, &network) {
            files::remove(&other)?;
            installed.removed.push(other);
        }
    }
    Ok(installed)
}

/// The network's name, after checking that the runtime will find Coil in the configuration.
fn network_of(netconf: &str, origin: &str) -> Result<String, InstallError> {
    let refuse = |problem: String| InstallError::Netconf { origin: origin.to_owned(), problem };
    let document: Value = serde_json::from_str(netconf).map_err(|e| refuse(format!("is not JSON: {e}")))?;
    let name = document["name"].as_str().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| refuse(r#"has no "name""#.into()))?;
    if !plugin_types(&document).any(|plugin| plugin == "coil") {
        return Err(refuse(r#"has no plugin with "type": "coil" in "plugins""#.into()));
    }
    Ok(name.to_owned())
}

fn plugin_types(document: &Value) -> impl Iterator<Item = &str> {
    document["plugins"].as_array().into_iter().flatten().filter_map(|plugin| plugin["type"].as_str())
}

/// A configuration is Coil's own when it is for the same network and Coil comes first in it: a
/// list in which Coil is chained after another plugin belongs to that plugin.
fn is_our_older(path: &Path, network: &str) -> bool {
    let configuration = path.extension().is_some_and(|e| e == "conflist" || e == "conf");
    let Some(document) = configuration
        .then(|| files::read_text(path).ok())
        .flatten()
        .and_then(|text| serde_json::from_str::<Value>(&text).ok())
    else {
        return false;
    };
    document["name"].as_str() == Some(network) && plugin_types(&document).next() == Some("coil")
}

#[cfg(test)]
mod tests;
