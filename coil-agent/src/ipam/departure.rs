//! Returning a block to its pool.
//!
//! Two steps. The DELETE only marks the block while our finalizer holds it: it is still this
//! node's, whatever became of the call. Removing the finalizer is what lets the controller give
//! the block to another node; a call without an answer leaves the block unused until it is
//! tried again.

use coil_api::{crd::AddressBlock, names::FINALIZER};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;

use super::{error::IpamError, table::Departure};

/// How often a lost race for one object is run again.
const CONFLICTS: u32 = 5;

/// How a departure ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The block is no longer this node's.
    Gone,
    /// It is still this node's, and may be used.
    Stays(IpamError),
    /// Nobody knows.
    Doubtful(IpamError),
}

/// Carries a departure out. `leaves` comes before the step that lets others have the block; when it fails
/// that step is not taken.
pub(super) async fn run(
    api: &Api<AddressBlock>,
    d: &Departure,
    leaves: impl Future<Output = Result<(), IpamError>>,
) -> Outcome {
    let mut leaves = Some(leaves);
    if !d.finalizer
        && let Some(leaves) = leaves.take()
        && let Err(e) = leaves.await
    {
        return Outcome::Doubtful(e);
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: Some(d.uid.clone()), resource_version: None }),
        ..DeleteParams::default()
    };
    match api.delete(&d.name, &params).await {
        Ok(_) if !d.finalizer => return Outcome::Gone,
        Ok(_) => {}
        Err(e) if code(&e) == Some(404) => return Outcome::Gone,
        Err(e) => {
            if code(&e) == Some(409) && is_another(api, d).await {
                return Outcome::Gone;
            }
            let error = IpamError::api(format!("delete AddressBlock {:?}", d.name), &e);
            return if d.finalizer || code(&e).is_some() {
                Outcome::Stays(error)
            } else {
                Outcome::Doubtful(error)
            };
        }
    }
    if let Some(leaves) = leaves
        && let Err(e) = leaves.await
    {
        return Outcome::Doubtful(e);
    }
    match remove_finalizer(api, d).await {
        Ok(()) => Outcome::Gone,
        Err(e) => Outcome::Doubtful(IpamError::api(
            format!("remove the finalizer of AddressBlock {:?}", d.name),
            &e,
        )),
    }
}

/// Removes our finalizer alone, from this very object. Fine when the object is gone.
async fn remove_finalizer(api: &Api<AddressBlock>, d: &Departure) -> Result<(), kube::Error> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let Some(block) = api.get_opt(&d.name).await? else { return Ok(()) };
        if block.metadata.uid.as_deref() != Some(&d.uid) {
            return Ok(());
        }
        let finalizers: Vec<String> =
            block.metadata.finalizers.into_iter().flatten().filter(|f| f != FINALIZER).collect();
        // With the resource version, a write of somebody else in between makes this fail, not undo it.
        let patch = json!({"metadata": {
            "uid": d.uid,
            "resourceVersion": block.metadata.resource_version,
            "finalizers": finalizers,
        }});
        match api.patch(&d.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => return Ok(()),
            Err(e) if code(&e) == Some(404) => return Ok(()),
            Err(e) if code(&e) == Some(409) && attempts < CONFLICTS => {}
            Err(e) => return Err(e),
        }
    }
}

/// Whether a block of the same name has taken the place of this one.
async fn is_another(api: &Api<AddressBlock>, d: &Departure) -> bool {
    match api.get_opt(&d.name).await {
        Ok(Some(block)) => block.metadata.uid.as_deref() != Some(&d.uid),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// The server's status code; none when there was no answer.
fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}
