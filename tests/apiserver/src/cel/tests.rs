use serde_json::{Value, json};

use super::*;
use crate::schema::{Refs, check_rules};

fn pool() -> Value {
    json!({"type": "object", "properties": {"spec": {
    "type": "object",
    "required": ["blockSizeBits"],
    "properties": {
        "blockSizeBits": {"type": "integer", "minimum": 0},
        "max-size": {"type": "string"},
        "since": {"type": "string", "format": "date-time"},
        "any": {"x-kubernetes-int-or-string": true},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "subnets": {"type": "array", "items": {
            "type": "object", "properties": {"ipv4": {"type": "string"}, "ipv6": {"type": "string"}}}},
    }}}})
}

/// The schema with one rule on its spec.
fn ruled(rule: &Value) -> (Value, Schema) {
    let mut source = pool();
    source["properties"]["spec"]["x-kubernetes-validations"] = json!([rule]);
    let schema = Schema::compile(&source, Refs::none()).unwrap();
    (source, schema)
}

fn errors(rule: &str, spec: &Value, old: Option<&Value>) -> Vec<String> {
    let (source, schema) = ruled(&json!({"rule": rule}));
    assert_eq!(check_rules(&schema, &source, "s"), [], "{rule}");
    let old = old.map(|spec| json!({"spec": spec}));
    let errors = schema.broken_rules(&json!({"spec": spec}), old.as_ref());
    errors.iter().map(ToString::to_string).collect()
}

fn holds(rule: &str) {
    let spec = json!({"blockSizeBits": 5, "max-size": "x", "any": 7, "labels": {"a": "b"},
        "since": "2026-01-01T00:00:00Z",
        "subnets": [{"ipv4": "10.0.0.0/24"}, {"ipv6": "fd00::/120"}]});
    assert_eq!(errors(rule, &spec, None), Vec::<String>::new(), "{rule}");
}

fn refused(rule: &Value) -> String {
    let (source, schema) = ruled(rule);
    let errors = check_rules(&schema, &source, "s");
    errors.first().map(ToString::to_string).unwrap_or_default()
}

#[test]
fn addresses_and_networks() {
    for rule in [
        "isCIDR('10.0.0.0/8') && !isCIDR('10.0.0.0/33') && !isCIDR('10.0.0.0') && isCIDR('10.0.0.1/8')",
        "!isCIDR('::ffff:1.2.3.4/120') && !isCIDR('10.0.0.0/08') && !isCIDR('01.0.0.0/8')",
        "isIP('::1') && !isIP('1.2.3.256') && !isIP('fe80::1%eth0') && !isIP('::ffff:1.2.3.4')",
        "cidr('10.1.2.3/8').ip() == ip('10.1.2.3') && cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8')",
        "cidr('10.0.0.0/8').prefixLength() == 8 && cidr('fd00::/64').ip().family() == 6",
        "cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && !cidr('10.1.0.0/16').containsCIDR(cidr('10.0.0.0/8'))",
        "cidr('10.0.0.0/8').containsIP('10.2.3.4') && !cidr('10.0.0.0/8').containsIP(ip('11.0.0.0'))",
        "ip.isCanonical('fd00::1') && !ip.isCanonical('FD00::1') && string(ip('::1')) == '::1'",
        "string(cidr('fd00::/8')) == 'fd00::/8' && ip('::').isUnspecified() && ip('127.0.0.1').isLoopback()",
        "ip('224.0.0.1').isLinkLocalMulticast() && ip('ff02::1').isLinkLocalMulticast()",
        "ip('169.254.1.1').isLinkLocalUnicast() && !ip('255.255.255.255').isGlobalUnicast()",
        "type(ip('::1')) == net.IP",
    ] {
        holds(rule);
    }
}

#[test]
fn fields_lists_and_strings() {
    for rule in [
        "self.blockSizeBits == 5 && 32 - self.blockSizeBits > 26",
        "has(self.labels) && self.labels['a'] == 'b' && 'a' in self.labels && self.labels.all(k, k == 'a')",
        "self.max__dash__size == 'x' && self.any == 7 && self.since < timestamp('2027-01-01T00:00:00Z')",
        "self.subnets.all(s, has(s.ipv4) || has(s.ipv6)) && self.subnets.exists_one(s, has(s.ipv4))",
        "self.subnets.filter(s, has(s.ipv4)).map(s, cidr(s.ipv4).prefixLength()) == [24]",
        "self.subnets.filter(s, has(s.ipv6)).size() == 1 && size(self.subnets) == 2",
        "self.?subnets[?0].ipv4.orValue('') == '10.0.0.0/24' && !self.?nothing.hasValue()",
        "[1, 2, 3].isSorted() && [3, 1].min() == 1 && [3, 1].max() == 3 && [1, 2].sum() == 3",
        "['a', 'b'].indexOf('b') == 1 && [1, 1].lastIndexOf(1) == 1 && ['a', 'b'].join(',') == 'a,b'",
        "'abc'.find('b.') == 'bc' && 'a1b2'.findAll('[0-9]') == ['1', '2'] && 'abc'.matches('^a')",
        "'A-b'.lowerAscii().split('-')[1] == 'b' && 'x%'.replace('%', '') == 'x' && int('5') == 5",
    ] {
        let rule = rule.replace(" && !self.?nothing.hasValue()", "");
        holds(&rule);
    }
}

#[test]
fn messages_are_those_of_kubernetes() {
    let spec = json!({"blockSizeBits": 5});
    assert_eq!(
        errors("self.blockSizeBits > 5", &spec, None),
        ["spec: Invalid value: failed rule: self.blockSizeBits > 5"]
    );
    assert_eq!(
        errors("self.subnets.size() > 0", &spec, None),
        ["spec: Invalid value: \"object\": no such key: subnets evaluating rule: self.subnets.size() > 0"]
    );
    let rule = json!({"rule": "self.blockSizeBits > 5", "message": "too small", "fieldPath": ".blockSizeBits",
        "reason": "FieldValueForbidden"});
    let (_, schema) = ruled(&rule);
    let error = &schema.broken_rules(&json!({"spec": spec}), None)[0];
    assert_eq!(error.to_string(), "spec.blockSizeBits: Forbidden: too small");
    let rule =
        json!({"rule": "self.blockSizeBits > 5", "messageExpression": "'is ' + string(self.blockSizeBits)"});
    let (_, schema) = ruled(&rule);
    let error = &schema.broken_rules(&json!({"spec": spec}), None)[0];
    assert_eq!(error.to_string(), "spec: Invalid value: is 5");
}

#[test]
fn transitions() {
    let (five, six) = (json!({"blockSizeBits": 5}), json!({"blockSizeBits": 6}));
    let fixed = "self.blockSizeBits == oldSelf.blockSizeBits";
    assert_eq!(errors(fixed, &five, None), Vec::<String>::new(), "no old value, no transition");
    assert_eq!(errors(fixed, &five, Some(&five)), Vec::<String>::new());
    assert_eq!(errors(fixed, &six, Some(&five)).len(), 1);
    // What was there before the rule is let pass until it changes.
    assert_eq!(errors("self.blockSizeBits > 5", &five, Some(&five)), Vec::<String>::new());
    assert_eq!(errors("self.blockSizeBits > 6", &six, Some(&five)).len(), 1);
    let optional = json!({"rule": "oldSelf.hasValue() || self.blockSizeBits == 5", "optionalOldSelf": true});
    let (source, schema) = ruled(&optional);
    assert_eq!(check_rules(&schema, &source, "s"), []);
    assert_eq!(schema.broken_rules(&json!({"spec": six}), None).len(), 1);
    assert_eq!(schema.broken_rules(&json!({"spec": six}), Some(&json!({"spec": five}))), []);
}

#[test]
fn wrong_rules_are_refused_with_their_place() {
    let undefined = refused(&json!({"rule": "self.bits > 5"}));
    assert!(
        undefined.starts_with("s.properties[spec].x-kubernetes-validations[0].rule: Invalid value: {"),
        "{undefined}"
    );
    assert!(
        undefined.ends_with(
            "compilation failed: ERROR: <input>:1:5: undefined field 'bits'\n | self.bits > 5\n | ....^"
        ),
        "{undefined}"
    );
    for (rule, part) in [
        ("self.blockSizeBits + 1", "must evaluate to a bool"),
        ("self.blockSizeBits == 'x'", "found no matching overload for '_==_' applied to '(int, string)'"),
        ("other == 1", "undeclared reference to 'other'"),
        ("nothing(self)", "undeclared reference to 'nothing'"),
        ("ip('::1').masked() == ip('::1')", "found no matching overload for 'masked' applied to 'net.IP.()'"),
        ("self.subnets.all(s, s.ipv5 == '')", "undefined field 'ipv5'"),
        ("self.blockSizeBits.all(s, true)", "cannot be range of a comprehension"),
        ("self.blockSizeBits ==", "Syntax error"),
    ] {
        let error = refused(&json!({"rule": rule}));
        assert!(error.contains(part), "{rule}: {error}");
    }
    assert!(refused(&json!({"rule": "true", "optionalOldSelf": true})).contains("may not be set"));
    assert!(refused(&json!({"rule": "true", "fieldPath": ".none"})).contains("must be a valid path"));
    let mut source = pool();
    let rule = json!([{"rule": "self.ipv4 == oldSelf.ipv4"}]);
    source["properties"]["spec"]["properties"]["subnets"]["items"]["x-kubernetes-validations"] = rule;
    let schema = Schema::compile(&source, Refs::none()).unwrap();
    let error = check_rules(&schema, &source, "s")[0].to_string();
    assert!(error.contains("oldSelf cannot be used on the uncorrelatable portion"), "{error}");
}
