//! AddressPool.

use std::time::Duration;

use coil_api::{
    crd::{AddressPool, AddressPoolSpec},
    validate::{Findings, OtherPool, pool_defaults, pool_on_create, pool_on_update},
};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams},
};
use serde_json::Value;

use super::{
    names::{IPAM, Webhook},
    review::{Operation, Question, Refusal, spec},
    routes::Judge,
};

/// Less than the ten seconds that an API server waits for the answer.
const LIST_LIMIT: Duration = Duration::from_secs(5);

/// Judges pools, by themselves and among all pools.
#[derive(Debug)]
pub struct Pools {
    api: Api<DynamicObject>,
}

impl Pools {
    /// A judge who asks this API server for the other pools.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { api: Api::all_with(client, &ApiResource::erase::<AddressPool>(&())) }
    }

    /// The pools as they are now: not from a cache, so that a pool made a moment ago counts. Two pools that
    /// are made at the same moment do not see each other.
    async fn others(&self, name: &str) -> Result<Vec<(String, AddressPoolSpec)>, Refusal> {
        let listed = tokio::time::timeout(LIST_LIMIT, self.api.list(&ListParams::default())).await;
        let unknown = |why: String| {
            Refusal::Unknown(format!(
                "the other {} cannot be read, so overlaps cannot be ruled out; try again ({why})",
                AddressPool::plural(&())
            ))
        };
        let pools = match listed {
            Ok(Ok(pools)) => pools,
            Ok(Err(error)) => return Err(unknown(error.to_string())),
            Err(_) => return Err(unknown(format!("no answer within {} s", LIST_LIMIT.as_secs()))),
        };
        let others = pools.into_iter().filter(|pool| pool.name_any() != name);
        // Nothing is given out from a pool that cannot be read.
        Ok(others
            .filter_map(|pool| {
                let spec = serde_json::from_value(pool.data.get("spec")?.clone()).ok()?;
                Some((pool.name_any(), spec))
            })
            .collect())
    }
}

impl Judge for Pools {
    fn webhook(&self) -> Webhook {
        IPAM
    }

    fn defaults(&self, object: &Value) -> Vec<Value> {
        pool_defaults(object)
    }

    async fn judge(&self, question: &Question) -> Result<Findings, Refusal> {
        let updated = *question.operation() == Operation::Update;
        if updated && question.object["spec"] == question.old["spec"] {
            return Ok(Findings::default());
        }
        let new = read(&question.object)?;
        let others = self.others(question.name()).await?;
        let others: Vec<_> = others.iter().map(|(name, spec)| OtherPool { name, spec }).collect();
        if !updated {
            return Ok(pool_on_create(&new, &others));
        }
        match read(&question.old) {
            Ok(old) => Ok(pool_on_update(&new, &old, &others)),
            // Nothing was given out from it: it is as if it were new.
            Err(_) => Ok(pool_on_create(&new, &others)),
        }
    }
}

fn read(pool: &Value) -> Result<AddressPoolSpec, Refusal> {
    serde_json::from_value(spec(pool, "subnets"))
        .map_err(|e| Refusal::Unreadable(format!("spec cannot be read as that of an AddressPool: {e}")))
}
