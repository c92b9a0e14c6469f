//! One leader at a time, by a Lease as client-go's leader election writes it: a Coil v2
//! controller and ours keep each other out during a migration.
//!
//! The work's client is fenced: it refuses to write as soon as the lease may be another's, whatever the
//! work is doing then (a process that was stopped for a while goes on where it was).

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::TryStreamExt as _;
use http::{Method, Request};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{PostParams, WatchParams},
    client::Body,
};
use tracing::{debug, info, warn};

/// Namespace of the leases, as in Coil v2.
pub const NAMESPACE: &str = "kube-system";

/// client-go's defaults: how long a lease lasts, when its holder gives up, how often it tries.
const DURATION: Duration = Duration::from_secs(15);
const RENEW_LIMIT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// Somebody else leads now, or may: this process must stop at once.
#[derive(Debug, thiserror::Error)]
#[error("lost the lease {NAMESPACE}/{name}: {reason}")]
pub struct Lost {
    name: String,
    reason: String,
}

/// A write was stopped: this process does not lead any more.
#[derive(Debug, thiserror::Error)]
#[error("not written: the lease {NAMESPACE}/{0} is not held any more")]
pub struct Lapsed(String);

/// Until when this process may write as the leader.
#[derive(Debug, Clone, Default)]
struct Fence(Arc<Mutex<Option<Instant>>>);

impl Fence {
    fn set(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    fn is_open(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() < until)
    }
}

/// A candidate for a lease.
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    election: Election,
    fence: Fence,
    /// Version of the lease that was read last.
    version: Option<String>,
}

/// The rules, without the API.
#[derive(Debug)]
struct Election {
    identity: String,
    /// The holder's last sign of life, by our own clock: clocks of machines differ.
    seen: Option<(Seen, Instant)>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Try {
    Ours,
    Held,
    /// Somebody wrote at the same time: look again.
    Conflict,
}

type Seen = (Option<String>, Option<MicroTime>);

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Candidate({} as {})", self.name, self.election.identity)
    }
}

impl Candidate {
    /// A candidate with a name of its own.
    #[must_use]
    pub fn new(client: Client, name: &str, identity: String) -> Self {
        Self {
            api: Api::namespaced(client, NAMESPACE),
            name: name.to_owned(),
            election: Election { identity, seen: None },
            fence: Fence::default(),
            version: None,
        }
    }

    /// A client for the leader's work: it reads always, and writes only while the lease is held.
    #[must_use]
    pub fn fenced(&self, client: &Client) -> Client {
        let (inner, fence, name) = (client.clone(), self.fence.clone(), self.name.clone());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (inner, fence, name) = (inner.clone(), fence.clone(), name.clone());
            async move {
                if request.method() != Method::GET && !fence.is_open() {
                    return Err(tower::BoxError::from(Lapsed(name)));
                }
                inner.send(request).await.map_err(tower::BoxError::from)
            }
        });
        Client::new(service, client.default_namespace())
    }

    /// An identity that no other process has: the host's name and a random part.
    #[must_use]
    pub fn unique_identity() -> String {
        let read = |path: &str| std::fs::read_to_string(path).map(|s| s.trim().to_owned());
        let host = read("/proc/sys/kernel/hostname").unwrap_or_else(|_| "coil".to_owned());
        let random = read("/proc/sys/kernel/random/uuid")
            .unwrap_or_else(|_| format!("{}-{}", std::process::id(), Timestamp::now().as_nanosecond()));
        format!("{host}_{random}")
    }

    /// Waits until the lease is ours.
    pub async fn acquire(&mut self) {
        info!(lease = self.name, identity = self.election.identity, "waiting for the lease");
        loop {
            let started = Instant::now();
            match tokio::time::timeout(RENEW_LIMIT, self.try_take()).await {
                Ok(Ok(Try::Ours)) => {
                    self.fence.set(Some(started + RENEW_LIMIT));
                    info!(lease = self.name, "leading");
                    return;
                }
                Ok(Ok(Try::Held | Try::Conflict)) => {}
                Err(_) => warn!(lease = self.name, "the API server does not answer; trying again"),
                Ok(Err(e)) => warn!(lease = self.name, error = %e, "cannot take the lease; trying again"),
            }
            // A holder that stops writes the lease: whoever watches it takes over at once.
            tokio::select! {
                () = self.changed() => {}
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Waits until somebody writes the lease; for ever when it cannot be watched.
    async fn changed(&self) {
        let news = async {
            let version = self.version.as_deref()?;
            let params = WatchParams::default().fields(&format!("metadata.name={}", self.name));
            let events = self.api.watch(&params, version).await.ok()?;
            std::pin::pin!(events).try_next().await.ok()?
        };
        if news.await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// Keeps the lease. Returns only when it is lost.
    pub async fn hold(&mut self) -> Lost {
        let mut renewed = Instant::now();
        let mut reason = String::new();
        loop {
            tokio::time::sleep(RETRY).await;
            let left = RENEW_LIMIT.saturating_sub(renewed.elapsed());
            let started = Instant::now();
            match tokio::time::timeout(left, self.try_take()).await {
                Ok(Ok(Try::Ours)) => {
                    renewed = started;
                    self.fence.set(Some(started + RENEW_LIMIT));
                    continue;
                }
                Ok(Ok(Try::Held)) => {
                    let holder = self.election.seen.as_ref().and_then(|s| s.0.0.clone());
                    return self.lost(format!("{} holds it", holder.unwrap_or_default()));
                }
                Ok(Ok(Try::Conflict)) => "another program writes the lease".clone_into(&mut reason),
                Ok(Err(e)) => {
                    warn!(lease = self.name, error = %e, "cannot renew the lease");
                    reason = e.to_string();
                }
                Err(_) if reason.is_empty() => "the API server does not answer".clone_into(&mut reason),
                Err(_) => {}
            }
            if renewed.elapsed() >= RENEW_LIMIT {
                return self.lost(format!("not renewed within {} s: {reason}", RENEW_LIMIT.as_secs()));
            }
        }
    }

    fn lost(&self, reason: String) -> Lost {
        self.fence.set(None);
        Lost { name: self.name.clone(), reason }
    }

    /// Lets the next candidate lead at once. Best effort: else the lease runs out.
    pub async fn release(&self) {
        self.fence.set(None);
        let result = async {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_ref() != Some(&self.election.identity) {
                return Ok(());
            }
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(now());
            self.api.replace(&self.name, &PostParams::default(), &lease).await.map(drop)
        };
        match tokio::time::timeout(RETRY, result).await {
            Ok(Ok(())) => info!(lease = self.name, "released"),
            Ok(Err(e)) => warn!(lease = self.name, error = %e, "not released; it runs out by itself"),
            Err(_) => warn!(lease = self.name, "not released in time; it runs out by itself"),
        }
    }

    /// Takes or renews the lease when it is ours, free or run out.
    async fn try_take(&mut self) -> Result<Try, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(self.name.clone());
            lease.metadata.namespace = Some(NAMESPACE.to_owned());
            lease.spec = Some(self.election.claim(&LeaseSpec::default()));
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        self.version.clone_from(&lease.metadata.resource_version);
        let spec = lease.spec.clone().unwrap_or_default();
        if !self.election.may_take(&spec, Instant::now()) {
            debug!(lease = self.name, holder = spec.holder_identity, "held");
            return Ok(Try::Held);
        }
        // The resource version goes along: of two candidates one gets a conflict.
        lease.spec = Some(self.election.claim(&spec));
        won(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }
}

impl Election {
    fn may_take(&mut self, spec: &LeaseSpec, now: Instant) -> bool {
        let sign: Seen = (spec.holder_identity.clone(), spec.renew_time.clone());
        let since = match &self.seen {
            Some((known, since)) if *known == sign => *since,
            _ => now,
        };
        self.seen = Some((sign, since));
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let lasts = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
        holder.is_empty() || holder == self.identity || now.duration_since(since) >= lasts.unwrap_or(DURATION)
    }

    fn claim(&self, old: &LeaseSpec) -> LeaseSpec {
        let ours = old.holder_identity.as_ref() == Some(&self.identity);
        let transitions = old.lease_transitions.unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if ours { old.acquire_time.clone() } else { Some(now()) },
            renew_time: Some(now()),
            lease_transitions: Some(if ours || old.renew_time.is_none() {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            ..old.clone()
        }
    }
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

fn won(written: Result<Lease, kube::Error>) -> Result<Try, kube::Error> {
    match written {
        Ok(_) => Ok(Try::Ours),
        Err(kube::Error::Api(s)) if s.code == 409 => Ok(Try::Conflict),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn election(identity: &str) -> Election {
        Election { identity: identity.to_owned(), seen: None }
    }

    #[test]
    fn a_free_lease_is_taken_and_a_held_one_only_when_it_ran_out() {
        let (a, mut b) = (election("a"), election("b"));
        let start = Instant::now();
        assert!(b.may_take(&LeaseSpec::default(), start), "nobody holds it");
        let held = a.claim(&LeaseSpec::default());
        assert!(!b.may_take(&held, start));
        assert!(!b.may_take(&held, start + DURATION / 2));
        let renewed = LeaseSpec { renew_time: Some(MicroTime(Timestamp::UNIX_EPOCH)), ..held };
        assert!(!b.may_take(&renewed, start + DURATION), "renewed, whatever the holder's clock says");
        assert!(b.may_take(&renewed, start + DURATION * 2));
        assert_eq!(b.claim(&renewed).lease_transitions, Some(1));
    }

    #[test]
    fn the_holder_renews_and_a_released_lease_is_free() {
        let (mut a, mut b) = (election("a"), election("b"));
        let held = a.claim(&LeaseSpec::default());
        assert!(a.may_take(&held, Instant::now()));
        let renewed = a.claim(&held);
        assert_eq!(renewed.acquire_time, held.acquire_time);
        assert_eq!(renewed.lease_transitions, held.lease_transitions);
        let released = LeaseSpec { holder_identity: Some(String::new()), ..renewed };
        assert!(b.may_take(&released, Instant::now()));
    }

    #[test]
    fn identities_are_unique() {
        assert_ne!(Candidate::unique_identity(), Candidate::unique_identity());
    }
}
