//! Readiness and draining of a gateway. Pure; time is passed in.

use std::time::{Duration, Instant};

use coil_api::gateway::{GatewaySeen, GatewayStatus, OTHERS_DROPPED};

use super::settings::Settings;

/// How long a gateway that was ready stays so while coild is silent. The datapath is pinned and
/// goes on without coild; this covers a restart or an upgrade of it.
pub const SILENCE: Duration = Duration::from_secs(60);

/// The shortest draining: clients hear of the pod's end only after a moment, and start new flows
/// until then.
pub const LINGER: Duration = Duration::from_secs(2);

/// What is known about the gateway.
#[derive(Debug)]
pub struct State {
    settings: Settings,
    /// coild's last answer, and when it came.
    last: Option<(GatewayStatus, Instant)>,
    /// Why there was no answer since.
    silence: Option<String>,
    draining: Option<Instant>,
}

impl State {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, last: None, silence: Some("coild was not asked yet".to_owned()), draining: None }
    }

    /// coild answered, or did not.
    pub fn observe(&mut self, answer: Result<GatewayStatus, String>, now: Instant) {
        match answer {
            Ok(status) => {
                self.last = Some((status, now));
                self.silence = None;
            }
            Err(e) => self.silence = Some(e),
        }
    }

    /// The pod was told to end.
    pub fn drain(&mut self, now: Instant) {
        self.draining.get_or_insert(now);
    }

    /// Flows in use, as far as is known.
    #[must_use]
    pub fn flows(&self) -> Option<u64> {
        self.last.as_ref().map(|(status, _)| status.flows)
    }

    /// What was seen of its traffic, as far as is known.
    #[must_use]
    pub fn seen(&self) -> Option<&GatewaySeen> {
        self.last.as_ref().map(|(status, _)| &status.seen)
    }

    /// What is to be said of a gateway that is ready; empty when nothing is.
    #[must_use]
    pub fn note(&self) -> String {
        if self.draining.is_some() {
            return match self.flows() {
                Some(flows) => format!("terminating, {flows} flows in use"),
                None => "terminating".to_owned(),
            };
        }
        match self.seen() {
            Some(GatewaySeen { lacks, .. }) if !lacks.is_empty() => {
                format!("{OTHERS_DROPPED}{lacks}")
            }
            _ => String::new(),
        }
    }

    /// Whether new clients may be sent here.
    #[must_use]
    pub fn takes_clients(&self, now: Instant) -> bool {
        self.draining.is_none() && self.ready(now).is_ok()
    }

    /// Whether clients are served, as the probe has it. Kubernetes sends nobody new to a pod that is terminating, whatever its
    /// probe says; but only while it is ready kube-proxy leaves the flows of clients by the kernel to it.
    ///
    /// # Errors
    /// The reason why not.
    pub fn ready(&self, now: Instant) -> Result<(), String> {
        let Some((status, at)) = &self.last else {
            return Err(self.silence.clone().unwrap_or_default());
        };
        let Settings { namespace, egress, addresses, .. } = &self.settings;
        if (&status.namespace, &status.egress) != (namespace, egress) {
            return Err(format!(
                "coild serves Egress {}/{} in this pod, not {namespace}/{egress}",
                status.namespace, status.egress
            ));
        }
        if !status.ready {
            return Err(format!("coild: {}", status.reason));
        }
        if let Some(address) = addresses.iter().find(|a| !status.addresses.contains(a)) {
            return Err(format!("coild does not know the pod's address {address}"));
        }
        match &self.silence {
            Some(why) if now.duration_since(*at) > SILENCE => {
                Err(format!("coild is silent for more than {} s: {why}", SILENCE.as_secs()))
            }
            _ => Ok(()),
        }
    }

    /// Whether a terminating pod may end: no flow is left, or nobody can have one, or the time is up.
    #[must_use]
    pub fn drained(&self, now: Instant, limit: Duration) -> bool {
        let Some(since) = self.draining else { return false };
        let waited = now.duration_since(since);
        // An answer of before says nothing about flows that came since.
        let fresh = self.last.as_ref().filter(|(_, at)| *at >= since + LINGER);
        waited >= limit || self.last.is_none() || fresh.is_some_and(|(status, _)| status.flows == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(25);

    fn state() -> State {
        State::new(Settings {
            namespace: "internet".into(),
            egress: "nat".into(),
            pod: "nat-1".into(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        })
    }

    fn status(flows: u64) -> GatewayStatus {
        GatewayStatus {
            ready: true,
            reason: String::new(),
            namespace: "internet".into(),
            egress: "nat".into(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            flows,
            seen: GatewaySeen::default(),
        }
    }

    #[test]
    fn ready_only_when_coild_says_so_about_this_gateway() {
        let (mut s, now) = (state(), Instant::now());
        assert!(s.ready(now).unwrap_err().contains("not asked"));
        s.observe(Err("connection refused".into()), now);
        assert!(s.ready(now).unwrap_err().contains("refused"));
        for (answer, part) in [
            (GatewayStatus { ready: false, reason: "2 clients missing".into(), ..status(0) }, "2 clients"),
            (GatewayStatus { egress: "other".into(), ..status(0) }, "internet/other"),
            (GatewayStatus { addresses: vec!["10.0.0.1".parse().unwrap()], ..status(0) }, "fd00::1"),
        ] {
            s.observe(Ok(answer), now);
            assert!(s.ready(now).unwrap_err().contains(part));
        }
        s.observe(Ok(status(0)), now);
        assert_eq!((s.ready(now), s.note()), (Ok(()), String::new()));
        let lacks = "this kernel lacks FOU for IPv4".to_owned();
        s.observe(
            Ok(GatewayStatus { seen: GatewaySeen { lacks, ..GatewaySeen::default() }, ..status(0) }),
            now,
        );
        assert_eq!(s.ready(now), Ok(()));
        assert!(s.note().ends_with("are dropped: this kernel lacks FOU for IPv4"), "{}", s.note());
    }

    #[test]
    fn a_restart_of_coild_is_survived_and_its_absence_is_not() {
        let (mut s, now) = (state(), Instant::now());
        s.observe(Ok(status(3)), now);
        s.observe(Err("connection refused".into()), now + SILENCE / 2);
        assert_eq!(s.ready(now + SILENCE / 2), Ok(()));
        assert!(s.ready(now + SILENCE * 2).unwrap_err().contains("connection refused"));
    }

    #[test]
    fn draining_ends_with_the_last_flow() {
        let (mut s, now) = (state(), Instant::now());
        s.observe(Ok(status(0)), now);
        assert!(!s.drained(now, LIMIT), "nobody asked it to end");
        assert!(s.takes_clients(now));
        s.drain(now);
        assert_eq!((s.ready(now), s.note()), (Ok(()), "terminating, 0 flows in use".into()));
        assert!(!s.takes_clients(now));
        assert!(!s.drained(now, LIMIT), "clients may not know yet");
        s.observe(Ok(status(2)), now + LINGER);
        assert!(!s.drained(now + LINGER, LIMIT));
        s.observe(Ok(status(0)), now + LINGER * 2);
        assert!(s.drained(now + LINGER * 2, LIMIT));
    }

    #[test]
    fn draining_ends_when_the_time_is_up_or_nobody_was_ever_here() {
        let (mut s, now) = (state(), Instant::now());
        s.drain(now);
        assert!(s.drained(now, LIMIT), "coild never answered: it never was ready");
        s.observe(Ok(status(5)), now + LINGER);
        s.observe(Err("gone".into()), now + LINGER * 2);
        assert!(!s.drained(now + LIMIT / 2, LIMIT));
        assert!(s.drained(now + LIMIT, LIMIT));
    }
}
