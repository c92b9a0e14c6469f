//! AddressPool.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    Findings, Reason, Violation,
    network::{self, Overlap, host_bits, host_bits_warning},
};
use crate::{
    crd::{AddressPoolSpec, SubnetSet},
    names::FINALIZER,
};

/// Another pool, whose addresses this one must not have.
#[derive(Debug, Clone, Copy)]
pub struct OtherPool<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its specification. What cannot be read in it is ignored: nothing is given out from that.
    pub spec: &'a AddressPoolSpec,
}

/// JSON patch operations that a new pool gets: the finalizer.
#[must_use]
pub fn defaults(pool: &Value) -> Vec<Value> {
    let finalizers = &pool["metadata"]["finalizers"];
    match finalizers.as_array() {
        Some(list) if list.iter().any(|f| f == FINALIZER) => vec![],
        Some(list) if !list.is_empty() => {
            vec![json!({"op": "add", "path": "/metadata/finalizers/-", "value": FINALIZER})]
        }
        _ => vec![json!({"op": "add", "path": "/metadata/finalizers", "value": [FINALIZER]})],
    }
}

/// Judges a new pool.
#[must_use]
pub fn on_create(spec: &AddressPoolSpec, others: &[OtherPool<'_>]) -> Findings {
    let mut findings = Findings::default();
    if spec.block_size_bits < 0 {
        findings.violations.push(Violation::new(
            "spec.blockSizeBits",
            Reason::Invalid,
            spec.block_size_bits,
            "must not be negative; 5 gives blocks of 32 addresses",
        ));
    }
    if spec.subnets.is_empty() {
        findings.violations.push(Violation::new(
            "spec.subnets",
            Reason::Required,
            Value::Null,
            "a pool has at least one subnet; add an entry with ipv4, ipv6, or both",
        ));
    }
    judge_entries(spec, 0, others, &mut findings);
    findings
}

/// Judges a change. Entries that were there before are not judged again: what Coil v2 took stays.
#[must_use]
pub fn on_update(new: &AddressPoolSpec, old: &AddressPoolSpec, others: &[OtherPool<'_>]) -> Findings {
    let mut findings = Findings::default();
    if new.block_size_bits != old.block_size_bits {
        findings.violations.push(Violation::new(
            "spec.blockSizeBits",
            Reason::Forbidden,
            new.block_size_bits,
            format!(
                "is {} for the life of a pool, because blocks of that size are in use; make another pool",
                old.block_size_bits
            ),
        ));
    }
    if new.subnets.len() < old.subnets.len() {
        findings.violations.push(Violation::new(
            "spec.subnets",
            Reason::Forbidden,
            Value::Null,
            "subnets can only be appended; put the removed ones back, or delete the pool",
        ));
        return findings;
    }
    for (i, (new, old)) in new.subnets.iter().zip(&old.subnets).enumerate() {
        if new != old {
            findings.violations.push(Violation::new(
                format!("spec.subnets[{i}]"),
                Reason::Forbidden,
                Value::Null,
                format!("cannot be changed from {}; append new subnets after the old ones", describe(old)),
            ));
        }
    }
    if findings.violations.is_empty() {
        judge_entries(new, old.subnets.len(), others, &mut findings);
    }
    findings
}

fn judge_entries(spec: &AddressPoolSpec, from: usize, others: &[OtherPool<'_>], findings: &mut Findings) {
    let bits = u32::try_from(spec.block_size_bits).unwrap_or(0);
    let first = spec.subnets.first();
    for (i, entry) in spec.subnets.iter().enumerate().skip(from) {
        let path = format!("spec.subnets[{i}]");
        let networks = entry_networks(&path, entry, &mut findings.violations);
        if entry.ipv4.is_none() && entry.ipv6.is_none() {
            findings.violations.push(Violation::new(
                path,
                Reason::Required,
                Value::Null,
                "has no subnet; set ipv4, ipv6, or both",
            ));
            continue;
        }
        if let Some(first) = first
            && families(first) != families(entry)
        {
            findings.violations.push(Violation::new(
                path.clone(),
                Reason::Invalid,
                describe(entry),
                format!(
                    "has {}, while spec.subnets[0] has {}; all entries of a pool have the same families, make another pool for these",
                    families(entry),
                    families(first)
                ),
            ));
        }
        for (family, network) in &networks {
            let field = format!("{path}.{family}");
            if u32::from(host_bits(network)) < bits {
                findings.violations.push(Violation::new(
                    field.clone(),
                    Reason::Invalid,
                    network.to_string(),
                    format!(
                        "is smaller than one block of 2^{bits} addresses; use a prefix of /{} or shorter, or a smaller spec.blockSizeBits",
                        u32::from(network.max_prefix_len()).saturating_sub(bits)
                    ),
                ));
            }
            findings.warnings.extend(host_bits_warning(&field, *network));
            if let Some(detail) =
                overlap_inside(spec, i, *network).or_else(|| overlap_outside(*network, others))
            {
                findings.violations.push(Violation::new(field, Reason::Invalid, network.to_string(), detail));
            }
        }
        if let [(_, v4), (_, v6)] = &networks[..]
            && host_bits(v4) != host_bits(v6)
        {
            findings.violations.push(Violation::new(
                path,
                Reason::Invalid,
                describe(entry),
                format!(
                    "ipv4 has {} host bits and ipv6 has {}; both need as many addresses, an ipv6 prefix of /{} fits this ipv4",
                    host_bits(v4),
                    host_bits(v6),
                    128 - host_bits(v4)
                ),
            ));
        }
    }
}

/// The networks of an entry that can be read; what cannot is a violation.
fn entry_networks(
    path: &str,
    entry: &SubnetSet,
    violations: &mut Vec<Violation>,
) -> Vec<(&'static str, IpNet)> {
    let ipv4 = entry.ipv4.as_deref().map(|t| ("ipv4", t, network::ipv4(t).map(IpNet::V4)));
    let ipv6 = entry.ipv6.as_deref().map(|t| ("ipv6", t, network::ipv6(t).map(IpNet::V6)));
    let mut networks = Vec::new();
    for (family, text, parsed) in ipv4.into_iter().chain(ipv6) {
        match parsed {
            Ok(network) => networks.push((family, network)),
            Err(detail) => {
                violations.push(Violation::new(format!("{path}.{family}"), Reason::Invalid, text, detail));
            }
        }
    }
    networks
}

/// The readable networks of a pool with the fields they stand in.
fn all_networks(spec: &AddressPoolSpec) -> impl Iterator<Item = (usize, &'static str, IpNet)> {
    spec.subnets.iter().enumerate().flat_map(|(i, entry)| {
        entry_networks("", entry, &mut Vec::new()).into_iter().map(move |(family, net)| (i, family, net))
    })
}

fn overlap_inside(spec: &AddressPoolSpec, entry: usize, network: IpNet) -> Option<String> {
    let (i, family, overlap) = all_networks(spec)
        .take_while(|(i, ..)| *i < entry)
        .find_map(|(i, family, other)| Some((i, family, Overlap::between(network, other)?)))?;
    Some(format!(
        "{overlap} of spec.subnets[{i}].{family}, so its addresses would be given twice; remove one of them"
    ))
}

fn overlap_outside(network: IpNet, others: &[OtherPool<'_>]) -> Option<String> {
    others.iter().find_map(|pool| {
        let (i, family, overlap) = all_networks(pool.spec)
            .find_map(|(i, family, other)| Some((i, family, Overlap::between(network, other)?)))?;
        Some(format!(
            "{overlap} of AddressPool {:?} (spec.subnets[{i}].{family}), so its addresses would be given twice; choose a subnet that no pool has",
            pool.name
        ))
    })
}

fn families(entry: &SubnetSet) -> &'static str {
    match (&entry.ipv4, &entry.ipv6) {
        (Some(_), Some(_)) => "IPv4 and IPv6",
        (Some(_), None) => "IPv4 alone",
        (None, Some(_)) => "IPv6 alone",
        (None, None) => "no family",
    }
}

fn describe(entry: &SubnetSet) -> String {
    match (&entry.ipv4, &entry.ipv6) {
        (Some(v4), Some(v6)) => format!("{v4} with {v6}"),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => "nothing".into(),
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
