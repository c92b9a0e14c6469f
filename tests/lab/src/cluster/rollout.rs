//! How many pods a Deployment's ReplicaSets should have next: pure arithmetic.

use k8s_openapi::{api::apps::v1::DeploymentStrategy, apimachinery::pkg::util::intstr::IntOrString};

/// A ReplicaSet's wanted and available pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) wanted: i32,
    pub(super) available: i32,
    /// Pods that exist, also those on their way out.
    pub(super) existing: i32,
}

/// How pods are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strategy {
    /// All old ones go before the first new one comes.
    Recreate,
    /// At most this many too many, at most this many too few.
    Rolling { surge: i32, unavailable: i32 },
}

impl Strategy {
    pub(super) fn of(strategy: Option<&DeploymentStrategy>, replicas: i32) -> Self {
        if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
            return Self::Recreate;
        }
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let surge = share(rolling.and_then(|r| r.max_surge.as_ref()), replicas, true);
        let unavailable = share(rolling.and_then(|r| r.max_unavailable.as_ref()), replicas, false);
        // Neither more nor fewer pods than wanted would never let anything change.
        Self::Rolling { surge, unavailable: if surge == 0 { unavailable.max(1) } else { unavailable } }
    }
}

/// A number, or a percentage of the replicas; 25 % when nothing is said.
fn share(value: Option<&IntOrString>, replicas: i32, up: bool) -> i32 {
    let percent = match value {
        Some(IntOrString::Int(number)) => return (*number).max(0),
        Some(IntOrString::String(text)) => text.trim_end_matches('%').parse().unwrap_or(25),
        None => 25,
    };
    (replicas * percent + if up { 99 } else { 0 }) / 100
}

/// The next wanted counts of the new ReplicaSet and of the old ones.
pub(super) fn next(strategy: Strategy, replicas: i32, new: Count, old: &[Count]) -> (i32, Vec<i32>) {
    let mut wanted_old: Vec<i32> = old.iter().map(|c| c.wanted).collect();
    match strategy {
        Strategy::Recreate => {
            let gone = old.iter().all(|c| c.existing == 0);
            (if gone { replicas } else { 0 }, vec![0; old.len()])
        }
        Strategy::Rolling { surge, unavailable } => {
            let total = new.wanted + wanted_old.iter().sum::<i32>();
            let room = (replicas + surge - total).max(0);
            let wanted_new = replicas.min(new.wanted + room);
            let available = new.available + old.iter().map(|c| c.available).sum::<i32>();
            let mut spare = (available - (replicas - unavailable)).max(0);
            for (wanted, count) in wanted_old.iter_mut().zip(old) {
                // Those that serve nobody can go at once.
                let idle = (*wanted - count.available).max(0);
                let serving = spare.min(*wanted - idle);
                spare -= serving;
                *wanted -= idle + serving;
            }
            (wanted_new, wanted_old)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(wanted: i32, available: i32) -> Count {
        Count { wanted, available, existing: wanted }
    }

    const ROLLING: Strategy = Strategy::Rolling { surge: 1, unavailable: 0 };

    #[test]
    fn shares() {
        let of = |surge: &str, unavailable: &str| {
            let strategy =
                serde_json::json!({"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
            Strategy::of(Some(&serde_json::from_value(strategy).unwrap()), 3)
        };
        assert_eq!(Strategy::of(None, 2), Strategy::Rolling { surge: 1, unavailable: 0 });
        assert_eq!(of("50%", "50%"), Strategy::Rolling { surge: 2, unavailable: 1 });
        assert_eq!(of("0%", "0%"), Strategy::Rolling { surge: 0, unavailable: 1 });
    }

    #[test]
    fn a_roll_keeps_all_replicas_available() {
        assert_eq!(next(ROLLING, 2, count(0, 0), &[count(2, 2)]), (1, vec![2]));
        assert_eq!(next(ROLLING, 2, count(1, 0), &[count(2, 2)]), (1, vec![2]));
        assert_eq!(next(ROLLING, 2, count(1, 1), &[count(2, 2)]), (1, vec![1]));
        assert_eq!(next(ROLLING, 2, count(1, 1), &[count(1, 1)]), (2, vec![1]));
        assert_eq!(next(ROLLING, 2, count(2, 2), &[count(1, 1)]), (2, vec![0]));
    }

    #[test]
    fn scaling_without_a_roll() {
        assert_eq!(next(ROLLING, 3, count(1, 1), &[]), (3, vec![]));
        assert_eq!(next(ROLLING, 1, count(3, 3), &[]), (1, vec![]));
    }

    #[test]
    fn recreate_waits_for_the_old() {
        let leaving = Count { wanted: 0, available: 0, existing: 1 };
        assert_eq!(next(Strategy::Recreate, 2, count(0, 0), &[count(2, 2)]), (0, vec![0]));
        assert_eq!(next(Strategy::Recreate, 2, count(0, 0), &[leaving]), (0, vec![0]));
        assert_eq!(
            next(Strategy::Recreate, 2, count(0, 0), &[Count { existing: 0, ..leaving }]),
            (2, vec![0])
        );
    }
}
