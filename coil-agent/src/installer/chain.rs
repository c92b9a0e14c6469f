//! Coming after another plugin: its configuration, copied, with coil at the end of the list.
//!
//! Runtimes use the configuration whose file name comes first, so the copy's name must; the other plugin's own
//! file stays as it is.

use std::path::Path;

use serde_json::{Value, json};

use super::{InstallError, files, plugin_types};

/// What runtimes take for a configuration.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// The list to install as `own`: that of the first other configuration of the folder, with coil behind it. None
/// when that list has coil already, by somebody's own hand.
pub(super) fn list(dir: &Path, own: &Path, socket: &str) -> Result<Option<String>, InstallError> {
    let refuse = |problem: String| InstallError::Setting { variable: "CNI_CHAIN", problem };
    let mut others = files::list(dir)?;
    others.retain(|path| {
        path != own && path.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e == *known))
    });
    let Some(first) = others.first() else {
        return Err(refuse(format!(
            "there is no plugin to come after: {} has no other configuration yet",
            dir.display()
        )));
    };
    if first.as_path() < own {
        return Err(refuse(format!(
            "{} comes first: choose a CNI_CONF_NAME that comes before it",
            first.display()
        )));
    }
    let document: Value = serde_json::from_str(&files::read_text(first)?)
        .map_err(|e| refuse(format!("{} is not JSON: {e}", first.display())))?;
    let mut list = as_list(document)
        .ok_or_else(|| refuse(format!("{} is no network configuration", first.display())))?;
    if plugin_types(&list).any(|plugin| plugin == "coil") {
        return Ok(None);
    }
    if let Some(plugins) = list["plugins"].as_array_mut() {
        plugins.push(json!({"type": "coil", "socket": socket}));
    }
    Ok(Some(format!("{list:#}\n")))
}

/// A list; of a single plugin's configuration, the list of that one.
fn as_list(document: Value) -> Option<Value> {
    if plugin_types(&document).next().is_some() {
        return Some(document);
    }
    document["type"].as_str()?;
    Some(json!({
        "cniVersion": document["cniVersion"],
        "name": document["name"],
        "plugins": [document],
    }))
}
