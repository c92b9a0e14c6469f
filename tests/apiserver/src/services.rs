//! Cluster IPs: which are taken, and what a Service gets.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::meta;
use crate::status::FieldError;

/// The service ranges and the addresses in use.
pub(crate) struct ServiceIps {
    /// One range per family at most, the primary family first.
    ranges: Vec<IpNet>,
    used: Mutex<HashSet<IpAddr>>,
}

/// Addresses taken for a Service that is not stored yet; dropped, they are free again.
pub(crate) struct Reservation {
    ips: Arc<ServiceIps>,
    taken: Vec<IpAddr>,
}

impl Reservation {
    /// The Service is stored: the addresses are its own.
    pub(crate) fn keep(mut self) {
        self.taken.clear();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut used = self.ips.used.lock().unwrap_or_else(PoisonError::into_inner);
        for ip in &self.taken {
            used.remove(ip);
        }
    }
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

impl ServiceIps {
    pub(crate) fn new(ranges: Vec<IpNet>) -> Self {
        Self { ranges, used: Mutex::default() }
    }

    pub(crate) fn ranges(&self) -> &[IpNet] {
        &self.ranges
    }

    /// The first address of the primary range: that of the `kubernetes` Service.
    pub(crate) fn first(&self) -> Option<IpAddr> {
        self.ranges.first().and_then(|range| range.hosts().find(|ip| *ip != range.network()))
    }

    /// Gives back the addresses of a removed Service.
    pub(crate) fn release(&self, service: &Value) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        for ip in cluster_ips(service) {
            used.remove(&ip);
        }
    }

    /// Fills in families and addresses of a Service's spec, keeping what it has from `old`.
    pub(crate) fn assign(
        self: &Arc<Self>,
        spec: &mut Map<String, Value>,
        old: Option<&Value>,
    ) -> Result<Reservation, FieldError> {
        let mut reservation = Reservation { ips: self.clone(), taken: Vec::new() };
        if spec.get("type").is_some_and(|kind| kind == "ExternalName") || self.ranges.is_empty() {
            return Ok(reservation);
        }
        let families = self.families(spec)?;
        let wanted = wanted(spec);
        let headless = wanted.first().is_some_and(|ip| ip == "None");
        spec.insert("ipFamilies".into(), json!(families));
        if headless {
            spec.insert("clusterIP".into(), "None".into());
            spec.insert("clusterIPs".into(), json!(["None"]));
            return Ok(reservation);
        }
        let kept: HashSet<IpAddr> = old.map(|old| cluster_ips(old).collect()).unwrap_or_default();
        let mut ips = Vec::new();
        for (index, family) in families.iter().enumerate() {
            let ip = match wanted.get(index) {
                Some(text) => self.take(text, family, &kept, &mut reservation)?,
                None => match kept.iter().find(|ip| self::family(**ip) == family) {
                    Some(ip) => *ip,
                    None => self.next(family, &mut reservation)?,
                },
            };
            ips.push(ip.to_string());
        }
        spec.insert("clusterIP".into(), ips.first().cloned().unwrap_or_default().into());
        spec.insert("clusterIPs".into(), ips.into());
        Ok(reservation)
    }

    fn families(&self, spec: &mut Map<String, Value>) -> Result<Vec<String>, FieldError> {
        let has: Vec<String> = self.ranges.iter().map(|range| family(range.addr()).to_owned()).collect();
        let listed = spec.get("ipFamilies").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut families: Vec<String> = Vec::new();
        for (index, name) in listed.iter().enumerate() {
            let known = name.as_str().filter(|name| has.iter().any(|have| have == name));
            let Some(known) = known else {
                let field = format!("spec.ipFamilies[{index}]");
                return Err(FieldError::invalid(field, name, "not configured on this cluster"));
            };
            families.push(known.to_owned());
        }
        if families.is_empty() {
            let given = wanted(spec).into_iter().filter_map(|ip| ip.parse().ok()).map(family);
            families = given.map(str::to_owned).collect();
        }
        let single = families.len() < 2;
        let policy = spec.entry("ipFamilyPolicy").or_insert(Value::Null);
        if policy.is_null() {
            *policy = if single { "SingleStack" } else { "RequireDualStack" }.into();
        }
        let policy = policy.clone();
        if families.is_empty() {
            families.extend(has.first().cloned());
        }
        match policy.as_str() {
            Some("SingleStack") => families.truncate(1),
            Some("PreferDualStack" | "RequireDualStack") => {
                if has.len() < 2 && policy == "RequireDualStack" {
                    let detail = "Cluster is not configured for dual stack services";
                    return Err(FieldError::invalid("spec.ipFamilyPolicy", &policy, detail));
                }
                let missing = has.into_iter().find(|have| !families.contains(have));
                families.extend(missing);
            }
            _ => {
                let known = [json!("SingleStack"), json!("PreferDualStack"), json!("RequireDualStack")];
                return Err(FieldError::not_supported("spec.ipFamilyPolicy", &policy, &known));
            }
        }
        Ok(families)
    }

    /// Takes the address that a Service asks for.
    fn take(
        &self,
        text: &str,
        family: &str,
        kept: &HashSet<IpAddr>,
        reservation: &mut Reservation,
    ) -> Result<IpAddr, FieldError> {
        let bad = |detail: &str| FieldError::invalid("spec.clusterIPs", &json!([text]), detail);
        let ip: IpAddr = text.parse().map_err(|_| bad("must be a valid IP address"))?;
        if self::family(ip) != family || !self.ranges.iter().any(|range| range.contains(&ip)) {
            return Err(bad("failed to allocate IP: the provided IP is not in the valid range"));
        }
        if kept.contains(&ip) {
            return Ok(ip);
        }
        if !self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(ip) {
            return Err(bad("failed to allocate IP: provided IP is already allocated"));
        }
        reservation.taken.push(ip);
        Ok(ip)
    }

    fn next(&self, family: &str, reservation: &mut Reservation) -> Result<IpAddr, FieldError> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let ranges = self.ranges.iter().filter(|range| self::family(range.addr()) == family);
        let free = ranges
            .flat_map(|range| range.hosts().filter(|ip| *ip != range.network()))
            .find(|ip| !used.contains(ip));
        let ip = free.ok_or_else(|| {
            let message = format!("failed to allocate a service IP: the {family} service range is full");
            FieldError { field: "spec.clusterIPs".into(), reason: "InternalError", message }
        })?;
        used.insert(ip);
        reservation.taken.push(ip);
        Ok(ip)
    }
}

/// The addresses that a spec names, `None` included.
fn wanted(spec: &Map<String, Value>) -> Vec<String> {
    let list = spec.get("clusterIPs").and_then(Value::as_array).into_iter().flatten();
    let listed: Vec<String> = list.filter_map(Value::as_str).map(str::to_owned).collect();
    let single = spec.get("clusterIP").and_then(Value::as_str).filter(|ip| !ip.is_empty());
    if listed.is_empty() { single.map(str::to_owned).into_iter().collect() } else { listed }
}

fn cluster_ips(service: &Value) -> impl Iterator<Item = IpAddr> {
    let list = meta::at(service, &["spec", "clusterIPs"]).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(|ip| ip.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(ips: &Arc<ServiceIps>, spec: Value) -> Value {
        let Value::Object(mut spec) = spec else { panic!("an object") };
        ips.assign(&mut spec, None).unwrap().keep();
        spec.into()
    }

    #[test]
    fn families_follow_the_policy() {
        let ranges = vec!["10.96.0.0/30".parse().unwrap(), "fd96::/126".parse().unwrap()];
        let ips = Arc::new(ServiceIps::new(ranges));
        assert_eq!(ips.first().unwrap().to_string(), "10.96.0.1");
        let single = assigned(&ips, json!({}));
        assert_eq!(single["clusterIPs"], json!(["10.96.0.1"]));
        assert_eq!(single["ipFamilyPolicy"], "SingleStack");
        let dual = assigned(&ips, json!({"ipFamilyPolicy": "PreferDualStack"}));
        assert_eq!(dual["clusterIPs"], json!(["10.96.0.2", "fd96::1"]));
        assert_eq!(dual["ipFamilies"], json!(["IPv4", "IPv6"]));
        let headless = assigned(&ips, json!({"clusterIP": "None"}));
        assert_eq!(headless["clusterIPs"], json!(["None"]));
        let six = assigned(&ips, json!({"ipFamilies": ["IPv6"]}));
        assert_eq!(six["clusterIP"], "fd96::2");
        let full = ips.assign(&mut Map::new(), None);
        assert!(full.is_err_and(|error| error.message.contains("full")));
        ips.release(&json!({"spec": single}));
        assert_eq!(assigned(&ips, json!({"clusterIP": "10.96.0.1"}))["clusterIP"], "10.96.0.1");
    }

    #[test]
    fn a_reservation_that_is_not_kept_is_free_again() {
        let ips = Arc::new(ServiceIps::new(vec!["10.96.0.0/16".parse().unwrap()]));
        drop(ips.assign(&mut Map::new(), None).unwrap());
        assert_eq!(assigned(&ips, json!({}))["clusterIP"], "10.96.0.1");
    }
}
