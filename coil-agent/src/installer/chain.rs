//! Coming after another plugin: its configuration, copied, with coil at the end of the list.
//!
//! Runtimes use the configuration whose file name comes first, so the copy's name must; the other plugin's own
//! file stays as it is.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{InstallError, files, plugin_types};

/// What runtimes take for a configuration.
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// What is to be done about the other plugin's configuration.
pub(super) enum Chained {
    /// This list is to be installed, with the mode of the original: it may hold what is not for everybody.
    Copy { list: String, mode: u32 },
    /// Somebody has put coil into the list: a copy of an earlier time would hide it.
    ByHand,
}

/// Looks at the configurations beside `own`: at that of the network, or the file, called `after`; without a name
/// at the first, which is the one that the runtime uses.
pub(super) fn look(
    dir: &Path,
    own: &Path,
    after: Option<&str>,
    socket: &str,
) -> Result<Chained, InstallError> {
    let refuse = |variable, problem: String| InstallError::Setting { variable, problem };
    let mut others = files::list(dir)?;
    others.retain(|path| {
        path != own && path.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e == *known))
    });
    let Some(first) = others.first() else {
        return Err(refuse(
            "CNI_CHAIN",
            format!("there is no plugin to come after: {} has no other configuration yet", dir.display()),
        ));
    };
    let original = match after {
        None => first,
        Some(after) => others.iter().find(|path| is_called(path, after)).ok_or_else(|| {
            let there: Vec<_> = others.iter().filter_map(|p| p.file_name()?.to_str()).collect();
            let there = there.join(", ");
            refuse(
                "CNI_CHAIN_NAME",
                format!("{} has no network and no file called {after:?} yet: it has {there}", dir.display()),
            )
        })?,
    };
    if first.as_path() < own {
        return Err(refuse(
            "CNI_CHAIN",
            format!("{} comes first: choose a CNI_CONF_NAME that comes before it", first.display()),
        ));
    }
    let document: Value = serde_json::from_str(&files::read_text(original)?)
        .map_err(|e| refuse("CNI_CHAIN", format!("{} is not JSON: {e}", original.display())))?;
    let mut list = as_list(document)
        .ok_or_else(|| refuse("CNI_CHAIN", format!("{} is no network configuration", original.display())))?;
    if has_coil(&list) {
        if original != first {
            let problem = format!(
                "{} has coil in it, and {} comes first: the runtime uses that one",
                original.display(),
                first.display()
            );
            return Err(refuse("CNI_CHAIN_NAME", problem));
        }
        return Ok(Chained::ByHand);
    }
    if let Some(plugins) = list["plugins"].as_array_mut() {
        plugins.push(json!({"type": "coil", "socket": socket}));
    }
    Ok(Chained::Copy { list: format!("{list:#}\n"), mode: files::mode(original)? })
}

/// The file, when it is a copy that an earlier run made: it hides the list that somebody has put coil into.
pub(super) fn stale(own: &Path) -> Option<PathBuf> {
    has_coil(&parsed(own)?).then(|| own.to_owned())
}

fn parsed(path: &Path) -> Option<Value> {
    serde_json::from_str(&files::read_text(path).ok()?).ok()
}

fn is_called(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|file| file == name)
        || parsed(path).is_some_and(|document| document["name"] == name)
}

fn has_coil(list: &Value) -> bool {
    plugin_types(list).any(|plugin| plugin == "coil")
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
