use proptest::prelude::*;

use super::*;

fn entry(ipv4: &str, ipv6: &str) -> SubnetSet {
    let field = |s: &str| (!s.is_empty()).then(|| s.to_owned());
    SubnetSet { ipv4: field(ipv4), ipv6: field(ipv6) }
}

fn pool(bits: i32, entries: &[(&str, &str)]) -> AddressPoolSpec {
    AddressPoolSpec { block_size_bits: bits, subnets: entries.iter().map(|(a, b)| entry(a, b)).collect() }
}

fn created(spec: &AddressPoolSpec) -> Vec<String> {
    on_create(spec, &[]).violations.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn refused(violations: &[Violation], field: &str, says: &[&str]) {
    let [one] = violations else { panic!("one violation, not {violations:#?}") };
    assert_eq!(one.field, field);
    for part in says {
        assert!(one.to_string().contains(part), "{one} should say {part:?}");
    }
}

#[test]
fn good_pools() {
    for spec in [
        pool(5, &[("10.2.0.0/24", "")]),
        pool(5, &[("10.2.0.0/27", "")]),
        pool(0, &[("10.2.0.0/24", ""), ("10.3.0.1/32", "")]),
        pool(8, &[("", "fd02::/120")]),
        pool(5, &[("", "fd02::/64"), ("", "fd02:0:0:1::/112")]),
        pool(5, &[("10.2.0.0/16", "fd02::/112"), ("10.3.0.0/24", "fd03::/120")]),
    ] {
        assert_eq!(on_create(&spec, &[]), Findings::default(), "{spec:?}");
    }
}

#[test]
fn bits_behind_the_prefix_are_taken_with_a_warning() {
    let findings = on_create(&pool(5, &[("10.2.0.9/24", "")]), &[]);
    assert_eq!(findings.violations, &[]);
    assert_eq!(findings.warnings.len(), 1, "{findings:?}");
}

#[test]
fn fields() {
    let judge = |spec| on_create(&spec, &[]).violations;
    refused(&judge(pool(5, &[])), "spec.subnets", &["Required", "add an entry"]);
    refused(
        &judge(pool(-1, &[("10.2.0.0/24", "")])),
        "spec.blockSizeBits",
        &["Invalid value: -1", "negative"],
    );
    refused(
        &judge(pool(5, &[("10.2.0.0/24", ""), ("", "")])),
        "spec.subnets[1]",
        &["set ipv4, ipv6, or both"],
    );
    refused(
        &judge(pool(5, &[("a.b.c.d/24", "")])),
        "spec.subnets[0].ipv4",
        &["Invalid value: \"a.b.c.d/24\"", "CIDR format"],
    );
    refused(&judge(pool(5, &[("fd02::/112", "")])), "spec.subnets[0].ipv4", &["move it to the field ipv6"]);
    refused(&judge(pool(5, &[("", "10.2.0.0/16")])), "spec.subnets[0].ipv6", &["move it to the field ipv4"]);
}

#[test]
fn sizes() {
    let judge = |spec| on_create(&spec, &[]).violations;
    refused(
        &judge(pool(5, &[("10.2.0.0/30", "")])),
        "spec.subnets[0].ipv4",
        &["\"10.2.0.0/30\"", "smaller than one block of 2^5", "/27 or shorter"],
    );
    refused(&judge(pool(8, &[("", "fd02::/124")])), "spec.subnets[0].ipv6", &["/120 or shorter"]);
    refused(
        &judge(pool(5, &[("10.2.0.0/16", "fd02::/64")])),
        "spec.subnets[0]",
        &["16 host bits", "64", "/112"],
    );
    // A size no address has: nothing overflows.
    assert_eq!(created(&pool(i32::MAX, &[("10.2.0.0/16", "fd02::/112")])).len(), 2);
}

#[test]
fn families_of_one_pool_are_the_same() {
    let both = ("10.2.0.0/24", "fd02::/120");
    for (entries, says) in [
        ([("10.2.0.0/24", ""), ("", "fd02::/112")], "IPv6 alone"),
        ([("", "fd02::/112"), ("10.2.0.0/24", "")], "IPv4 alone"),
        ([("10.3.0.0/24", ""), both], "IPv4 and IPv6"),
        ([both, ("10.3.0.0/24", "")], "IPv4 alone"),
    ] {
        let found = on_create(&pool(5, &entries), &[]).violations;
        refused(&found, "spec.subnets[1]", &[says, "same families", "another pool"]);
    }
}

#[test]
fn overlaps() {
    let found = on_create(&pool(0, &[("10.2.0.0/24", ""), ("10.2.0.128/25", "")]), &[]).violations;
    refused(&found, "spec.subnets[1].ipv4", &["overlaps 10.2.0.0/24", "spec.subnets[0].ipv4", "twice"]);
    let found = on_create(&pool(0, &[("10.2.0.0/24", "fd02::/120"), ("10.3.0.0/24", "fd02::/120")]), &[]);
    refused(&found.violations, "spec.subnets[1].ipv6", &["is the same as fd02::/120"]);

    let other = pool(5, &[("10.0.0.0/8", ""), ("rubbish", "")]);
    let others = [OtherPool { name: "big", spec: &other }];
    let found = on_create(&pool(5, &[("10.2.0.0/16", "")]), &others).violations;
    refused(&found, "spec.subnets[0].ipv4", &["AddressPool \"big\"", "spec.subnets[0].ipv4", "no pool has"]);
    assert_eq!(on_create(&pool(5, &[("11.2.0.0/16", "")]), &others).violations, &[]);
}

#[test]
fn updates() {
    let old = pool(2, &[("10.2.0.0/24", ""), ("10.3.0.0/24", "")]);
    let judge = |new: &AddressPoolSpec| on_update(new, &old, &[]).violations;
    assert_eq!(judge(&old), &[]);
    assert_eq!(judge(&pool(2, &[("10.2.0.0/24", ""), ("10.3.0.0/24", ""), ("10.4.0.0/24", "")])), &[]);
    refused(
        &judge(&pool(4, &[("10.2.0.0/24", ""), ("10.3.0.0/24", "")])),
        "spec.blockSizeBits",
        &["Forbidden", "is 2", "another pool"],
    );
    refused(&judge(&pool(2, &[("10.2.0.0/24", "")])), "spec.subnets", &["Forbidden", "only be appended"]);
    refused(
        &judge(&pool(2, &[("10.2.0.0/24", ""), ("10.4.0.0/24", "")])),
        "spec.subnets[1]",
        &["cannot be changed from 10.3.0.0/24", "append"],
    );
    let inserted = pool(2, &[("10.9.0.0/24", ""), ("10.2.0.0/24", ""), ("10.3.0.0/24", "")]);
    assert_eq!(judge(&inserted).len(), 2);
    refused(
        &judge(&pool(2, &[("10.2.0.0/24", ""), ("10.3.0.0/24", ""), ("10.4.0.0/31", "")])),
        "spec.subnets[2].ipv4",
        &["smaller"],
    );
    refused(
        &judge(&pool(2, &[("10.2.0.0/24", ""), ("10.3.0.0/24", ""), ("10.2.0.0/30", "")])),
        "spec.subnets[2].ipv4",
        &["overlaps 10.2.0.0/24"],
    );
}

/// A pool that Coil v2 took and that would not be made today can still be changed, so also deleted.
#[test]
fn what_was_there_is_not_judged_again() {
    let old = pool(2, &[("10.2.0.0/24", ""), ("10.2.0.0/24", "")]);
    let others = [OtherPool { name: "twin", spec: &old }];
    assert_eq!(on_update(&old, &old, &others), Findings::default());
    let appended = pool(2, &[("10.2.0.0/24", ""), ("10.2.0.0/24", ""), ("10.5.0.0/24", "")]);
    assert_eq!(on_update(&appended, &old, &others).violations, &[]);
}

#[test]
fn finalizer() {
    let patched = |mut pool: Value| {
        let ops = defaults(&pool);
        let patch: json_patch::Patch = serde_json::from_value(Value::Array(ops)).unwrap();
        json_patch::patch(&mut pool, &patch).unwrap();
        pool["metadata"]["finalizers"].clone()
    };
    assert_eq!(patched(json!({"metadata": {}})), json!([FINALIZER]));
    assert_eq!(patched(json!({"metadata": {"finalizers": null}})), json!([FINALIZER]));
    assert_eq!(patched(json!({"metadata": {"finalizers": []}})), json!([FINALIZER]));
    assert_eq!(patched(json!({"metadata": {"finalizers": ["a/b"]}})), json!(["a/b", FINALIZER]));
    assert_eq!(patched(json!({"metadata": {"finalizers": [FINALIZER]}})), json!([FINALIZER]));
}

proptest! {
    /// A pool that is taken gives each address once: no two subnets of it share one.
    #[test]
    fn no_address_twice(nets in prop::collection::vec((0u8..8, 27u8..=32), 1..6), split in 0usize..6) {
        let texts: Vec<String> = nets.iter().map(|(a, p)| format!("10.0.0.{}/{p}", u32::from(*a) << 4)).collect();
        let spec = AddressPoolSpec {
            block_size_bits: 0,
            subnets: texts.iter().map(|t| entry(t, "")).collect(),
        };
        let mut addresses = Vec::new();
        for text in &texts {
            let net: IpNet = text.parse().unwrap();
            let net = net.trunc();
            addresses.extend((0..1u32 << host_bits(&net)).map(|i| match net.network() {
                std::net::IpAddr::V4(a) => u32::from(a) + i,
                std::net::IpAddr::V6(_) => unreachable!("all are IPv4"),
            }));
        }
        let all = addresses.len();
        addresses.sort_unstable();
        addresses.dedup();
        let unique = addresses.len() == all;
        prop_assert_eq!(on_create(&spec, &[]).violations.is_empty(), unique);
        // The same subnets over two pools, or appended, are judged the same.
        let (a, b) = spec.subnets.split_at(split.min(spec.subnets.len()));
        let (a, b) = (AddressPoolSpec { block_size_bits: 0, subnets: a.to_vec() }, AddressPoolSpec { block_size_bits: 0, subnets: b.to_vec() });
        if !a.subnets.is_empty() && !b.subnets.is_empty() {
            let two = [OtherPool { name: "a", spec: &a }];
            let both = on_create(&a, &[]).violations.is_empty() && on_create(&b, &two).violations.is_empty();
            prop_assert_eq!(both, unique);
            if on_create(&a, &[]).violations.is_empty() {
                prop_assert_eq!(on_update(&spec, &a, &[]).violations.is_empty(), unique);
            }
        }
    }
}
