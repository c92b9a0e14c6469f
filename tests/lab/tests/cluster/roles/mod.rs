//! The shipped roles: enough for everything, and nothing in them that nobody needs.
//!
//! The API server writes down every question about rights while labs do all that Coil does. Then one permission after the other
//! is taken out of the roles, and there must be a question that is answered otherwise. None is excused.
//!
//! | what | is asked for in |
//! | --- | --- |
//! | roles of `overlays/with-router` | a lab that does everything ([`everything`]) |
//! | of these, what egress by the kernel needs | a lab whose datapath is the kernel's, as `overlays/kernel-datapath` |
//! | roles of the other overlays | the same: each has some of these, unchanged, and no others |
//! | `coil-egress`, which gateways are bound to | nobody: it gives nothing, and its parts are those of `from-v2` |
//! | roles of `from-v2` | the programs of Coil v2, by their sources: `tests/apitest`, `from_v2` |
//! | `*-viewer-role` | nobody: they are for people |

mod everything;
mod permissions;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use coil_apiserver::{Policy, Question};
use coil_lab::{
    Lab,
    config::{Api, Options},
};
use serde::Deserialize as _;
use serde_json::Value;

use crate::common::{check, end, name, program};

const OVERLAYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/overlays");
/// Has all roles.
const WIDEST: &str = "with-router";

/// For people, whose questions no program asks.
fn is_for_people(role: &str) -> bool {
    role.ends_with("-viewer-role")
}

fn is_role(object: &Value) -> bool {
    matches!(object["kind"].as_str(), Some("Role" | "ClusterRole"))
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

#[test]
fn each_permission_is_needed() -> Result<()> {
    let mut questions = Vec::new();
    for (test, datapath, run) in [
        ("roles", "auto", everything::run as fn(&Lab) -> Result<()>),
        // What it asks for at its start is all that is different.
        ("roles-kernel", "kernel", |_| Ok(())),
    ] {
        // The record is the embedded server's.
        let options =
            Options { api: Some(Api::Embedded), datapath: datapath.into(), ..Options::named(&name(test)) };
        let lab = Lab::start(program(), options)?;
        run(&lab)?;
        questions.extend(lab.questions()?);
        end(lab)?;
    }
    check(questions.len() > 50, || format!("only {} questions were asked", questions.len()))?;
    // The binding that the egress controller makes is not in it.
    let objects = built(WIDEST)?;
    let full = Policy::new(&objects);
    let denied: Vec<&Question> = questions.iter().filter(|question| !full.allows(&question.asked)).collect();
    check(denied.is_empty(), || format!("the shipped roles alone do not allow {denied:?}"))?;

    let mut needless = Vec::new();
    let mut looked_at = 0;
    for (index, object) in objects.iter().enumerate() {
        let role = name_of(object);
        if !is_role(object) || is_for_people(role) {
            continue;
        }
        for (permission, without) in permissions::each_without_one(object)? {
            looked_at += 1;
            let mut changed = objects.clone();
            changed[index] = without;
            let policy = Policy::new(&changed);
            if questions.iter().all(|question| policy.allows(&question.asked)) {
                needless.push(format!("{role} {permission}"));
            }
        }
    }
    check(looked_at > 100, || format!("only {looked_at} permissions were looked at"))?;
    check(needless.is_empty(), || format!("nobody asked for:\n{}", needless.join("\n")))
}

/// What one overlay gives is not more than what the widest does, which is looked at above.
#[test]
fn no_overlay_gives_more() -> Result<()> {
    let widest = built(WIDEST)?;
    let mut roles = 0;
    for entry in std::fs::read_dir(OVERLAYS).with_context(|| format!("cannot read {OVERLAYS}"))? {
        let overlay = entry?.file_name().to_string_lossy().into_owned();
        for object in built(&overlay)? {
            let gives = is_role(&object)
                || matches!(object["kind"].as_str(), Some("RoleBinding" | "ClusterRoleBinding"));
            if gives {
                roles += 1;
                let told = || format!("{overlay}: {} is not that of {WIDEST}", name_of(&object));
                check(widest.contains(&object), told)?;
            }
        }
    }
    check(roles > 100, || format!("only {roles} roles and bindings"))
}

/// What an overlay ships.
fn built(overlay: &str) -> Result<Vec<Value>> {
    let overlay = Path::new(OVERLAYS).join(overlay);
    let output = Command::new("kubectl").arg("kustomize").arg(overlay).output();
    let output = output.context("cannot run kubectl")?;
    check(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    let text = String::from_utf8(output.stdout)?;
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    documents.map(|document| Ok(Value::deserialize(document)?)).collect()
}
