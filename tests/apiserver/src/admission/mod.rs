//! Admission webhooks: who is asked about a write, what they are told, what their answers do.
//!
//! ```text
//! decode ─▶ mutate: one hook after the other ─▶ schema, rules ─▶ validate: all at once ─▶ store
//! ```

mod call;
mod hook;
mod matching;
mod review;

use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;

use crate::backend::Backend;
use crate::status::{ApiError, Result};
use crate::verbs::Place;

pub(crate) use call::{EndpointResolver, Resolve};
use hook::Hook;
use matching::Matcher;

/// The group of the configurations, which no webhook is asked about.
pub(crate) const GROUP: &str = "admissionregistration.k8s.io";
/// The tables of the configurations.
const TABLES: [&str; 2] = [
    "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    "validatingwebhookconfigurations.admissionregistration.k8s.io",
];

/// What a request does to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// A write, as webhooks are told of it.
#[derive(Clone, Copy)]
pub(crate) struct Write<'a> {
    pub(crate) place: Place<'a>,
    pub(crate) operation: Operation,
    pub(crate) name: &'a str,
    /// Empty for the object itself.
    pub(crate) subresource: &'a str,
    /// The state before; none for a creation.
    pub(crate) old: Option<&'a Value>,
    pub(crate) dry_run: bool,
    /// `CreateOptions` and the like, as far as the request has them.
    pub(crate) options: &'a Value,
}

/// The hooks in force.
#[derive(Default)]
struct Hooks {
    mutating: Vec<Hook>,
    validating: Vec<Hook>,
}

/// Admission by webhooks.
pub(crate) struct Admission {
    hooks: RwLock<Arc<Hooks>>,
    resolver: Arc<dyn Resolve>,
}

impl Admission {
    pub(crate) fn new(resolver: Arc<dyn Resolve>) -> Self {
        Self { hooks: RwLock::default(), resolver }
    }

    /// Reads the configurations again, when `table` is one of theirs.
    pub(crate) fn configured(&self, table: &str, backend: &Backend) {
        if !TABLES.contains(&table) {
            return;
        }
        let of = |plural: &str| -> Vec<Hook> {
            let resource = backend.registry.builtin(GROUP, plural);
            // A list is in the order of the names, which is that of the calls.
            let (configurations, _) = backend.store.list(&resource.table, None);
            configurations.iter().flat_map(|configuration| Hook::all(configuration.value())).collect()
        };
        let hooks = Hooks {
            mutating: of("mutatingwebhookconfigurations"),
            validating: of("validatingwebhookconfigurations"),
        };
        *self.hooks.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(hooks);
    }

    fn hooks(&self) -> Arc<Hooks> {
        self.hooks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets the mutating webhooks change the object; returns whether one did.
    pub(crate) async fn mutate(&self, write: Write<'_>, object: &mut Value) -> Result<bool> {
        let hooks = self.hooks();
        let before = (!hooks.mutating.is_empty()).then(|| object.clone());
        let mut again = false;
        let mut asked = vec![false; hooks.mutating.len()];
        for (index, hook) in hooks.mutating.iter().enumerate() {
            if !Matcher::new(write, Some(object)).wants(hook)? {
                continue;
            }
            asked[index] = true;
            let changed = self.ask(hook, write, object).await?;
            // Those before this one have not seen what it changed.
            again |= changed
                && asked[..index].iter().zip(&hooks.mutating).any(|(asked, hook)| *asked && hook.again);
        }
        if again {
            for (hook, asked) in hooks.mutating.iter().zip(asked) {
                if asked && hook.again {
                    self.ask(hook, write, object).await?;
                }
            }
        }
        Ok(before.is_some_and(|before| before != *object))
    }

    async fn ask(&self, hook: &Hook, write: Write<'_>, object: &mut Value) -> Result<bool> {
        let answer = match self.call(hook, write, Some(object), true).await {
            Ok(answer) => answer,
            Err(Failure::Refused(error)) => return Err(error),
            Err(Failure::Call(_)) if hook.fails_open => return Ok(false),
            Err(Failure::Call(why)) => return Err(failed(hook, &why)),
        };
        let Some(patch) = answer.patch else { return Ok(false) };
        let before = object.clone();
        json_patch::patch(object, &patch).map_err(ApiError::internal)?;
        Ok(before != *object)
    }

    /// Asks the validating webhooks; the first that refuses refuses the write.
    pub(crate) async fn validate(&self, write: Write<'_>, object: Option<&Value>) -> Result<()> {
        let hooks = self.hooks();
        let mut calls = Vec::new();
        for hook in &hooks.validating {
            if Matcher::new(write, object).wants(hook)? {
                calls.push(async move { (hook, self.call(hook, write, object, false).await) });
            }
        }
        for (hook, answer) in futures::future::join_all(calls).await {
            match answer {
                Ok(_) => {}
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Call(_)) if hook.fails_open => {}
                Err(Failure::Call(why)) => return Err(failed(hook, &why)),
            }
        }
        Ok(())
    }

    /// Whether nobody wants to hear of anything.
    pub(crate) fn is_silent(&self) -> bool {
        let hooks = self.hooks();
        hooks.mutating.is_empty() && hooks.validating.is_empty()
    }

    /// One call: what the webhook answered, or why there is no answer.
    async fn call(
        &self,
        hook: &Hook,
        write: Write<'_>,
        object: Option<&Value>,
        mutating: bool,
    ) -> std::result::Result<review::Answer, Failure> {
        if write.dry_run && !hook.dry_run_safe {
            let why = format!("admission webhook {:?} does not support dry run", hook.name);
            return Err(Failure::Refused(ApiError::bad_request(why)));
        }
        let (uid, request) = review::request(write, object);
        let body = call::post(self.resolver.as_ref(), write.place.backend, hook, request)
            .await
            .map_err(|why| Failure::Call(format!("failed to call webhook: {why}")))?;
        let answer = review::answer(&body, &uid, mutating)
            .map_err(|why| Failure::Call(format!("received invalid webhook response: {why}")))?;
        for warning in &answer.warnings {
            write.place.caller.warn(warning.clone());
        }
        match answer.refusal {
            None => Ok(answer),
            Some(status) => Err(Failure::Refused(ApiError::denied(&hook.name, &status))),
        }
    }
}

enum Failure {
    /// The webhook, or a rule about it, says no.
    Refused(ApiError),
    /// There is no answer, or none that can be understood.
    Call(String),
}

fn failed(hook: &Hook, why: &str) -> ApiError {
    ApiError::internal(format!("failed calling webhook {:?}: {why}", hook.name))
}
