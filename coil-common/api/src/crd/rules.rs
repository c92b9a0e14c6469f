//! What needs no other object, in CEL: the definitions themselves refuse it, also while no webhook
//! answers. [`crate::validate`] says the same, with better messages, and more.
//!
//! - Rules that look at the old value judge what changes: an object that Coil v2 took, and that would not
//!   be made today, can still be changed and deleted. The server itself does not judge again what
//!   stays as it is (validation ratcheting).
//! - The functions on networks need Kubernetes 1.31 or later.
//! - A server refuses a definition whose rules could cost too much, so lists and texts have bounds:
//!   [`MAX_SUBNETS`], [`MAX_DESTINATIONS`], [`MAX_CIDR`].
//!   Messages are fixed texts for the same reason: a text made of values has no bounds for the estimate.
//! - Overlaps inside a pool are looked for in pools of at most [`OVERLAP_LIMIT`] subnets: more pairs
//!   than that exceed what one rule may cost at run time. The webhook looks for them always.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, ValidationRule,
};

/// Most subnets of one pool.
pub const MAX_SUBNETS: i64 = 240;
/// Most destinations of one Egress.
pub const MAX_DESTINATIONS: i64 = 16_384;
/// Longest text of a network: ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255/128.
pub const MAX_CIDR: i64 = 49;
/// Most subnets of a pool whose overlaps are looked for without the webhook.
pub const OVERLAP_LIMIT: i64 = 128;

/// A rule, and where it stands.
struct Rule {
    /// Path of the field in the schema; `[]` is the items of a list.
    at: &'static [&'static str],
    rule: String,
    /// What is wrong and what to do.
    message: &'static str,
    reason: &'static str,
    /// The field below `at` that the message is about.
    field: Option<&'static str>,
    /// Whether `oldSelf` is an optional, so that creation is judged as well.
    optional_old: bool,
}

const INVALID: &str = "FieldValueInvalid";
const FORBIDDEN: &str = "FieldValueForbidden";
const REQUIRED: &str = "FieldValueRequired";

impl Rule {
    fn new(
        at: &'static [&'static str],
        reason: &'static str,
        rule: impl Into<String>,
        message: &'static str,
    ) -> Self {
        Self { at, rule: rule.into(), message, reason, field: None, optional_old: false }
    }

    fn field(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }

    fn optional_old(self) -> Self {
        Self { optional_old: true, ..self }
    }
}

/// Puts the rules and bounds of its kind into a definition.
pub(super) fn apply(crd: &mut CustomResourceDefinition) {
    let rules = match crd.spec.names.kind.as_str() {
        "AddressPool" => pool(),
        "AddressBlock" => block(),
        "BlockRequest" => request(),
        "Egress" => egress(),
        _ => return,
    };
    for version in &mut crd.spec.versions {
        let Some(root) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) else {
            continue;
        };
        for (at, bound) in BOUNDS {
            if let Some(schema) = find(root, at) {
                match schema.type_.as_deref() {
                    Some("array") => schema.max_items = Some(*bound),
                    _ => schema.max_length = Some(*bound),
                }
            }
        }
        for rule in &rules {
            if let Some(schema) = find(root, rule.at) {
                schema.x_kubernetes_validations.get_or_insert_default().push(ValidationRule {
                    rule: rule.rule.clone(),
                    message: Some(rule.message.to_owned()),
                    reason: Some(rule.reason.to_owned()),
                    field_path: rule.field.map(str::to_owned),
                    optional_old_self: rule.optional_old.then_some(true),
                    ..Default::default()
                });
            }
        }
    }
}

const BOUNDS: &[(&[&str], i64)] = &[
    (&["spec", "subnets"], MAX_SUBNETS),
    (&["spec", "subnets", "[]", "ipv4"], MAX_CIDR),
    (&["spec", "subnets", "[]", "ipv6"], MAX_CIDR),
    (&["spec", "destinations"], MAX_DESTINATIONS),
    (&["spec", "destinations", "[]"], MAX_CIDR),
    (&["ipv4"], MAX_CIDR),
    (&["ipv6"], MAX_CIDR),
];

fn find<'a>(schema: &'a mut JSONSchemaProps, at: &[&str]) -> Option<&'a mut JSONSchemaProps> {
    at.iter().try_fold(schema, |schema, step| match (*step, &mut schema.items) {
        ("[]", Some(JSONSchemaPropsOrArray::Schema(items))) => Some(&mut **items),
        ("[]", _) => None,
        (name, _) => schema.properties.as_mut()?.get_mut(name),
    })
}

/// The fields of both families, with what a person needs to know of each.
const FAMILIES: [(&str, i64, i64, &str); 2] = [
    (
        "ipv4",
        4,
        32,
        "must be an IPv4 network in CIDR format, such as 10.2.0.0/16; an IPv6 network goes into the field ipv6",
    ),
    (
        "ipv6",
        6,
        128,
        "must be an IPv6 network in CIDR format, such as fd00:2::/112; an IPv4 network goes into the field ipv4",
    ),
];

/// Whether a field of `of` holds a network that the other functions can be asked about.
fn readable(of: &str, field: &str) -> String {
    format!("has({of}.{field}) && isCIDR({of}.{field})")
}

/// An entry with both families has as many addresses in each. Written so that unreadable texts pass: another
/// rule is about these.
fn same_size() -> String {
    format!(
        "!({} && {}) || 32 - cidr(self.ipv4).prefixLength() == 128 - cidr(self.ipv6).prefixLength()",
        readable("self", "ipv4"),
        readable("self", "ipv6")
    )
}

fn pool() -> Vec<Rule> {
    const SUBNETS: &[&str] = &["spec", "subnets"];
    const ENTRY: &[&str] = &["spec", "subnets", "[]"];
    let mut rules = vec![
        Rule::new(
            &[],
            REQUIRED,
            "has(self.spec) || (oldSelf.hasValue() && !has(oldSelf.value().spec))",
            "a pool has at least one subnet; add spec.subnets with an entry that has ipv4, ipv6, or both",
        )
        .field(".spec")
        .optional_old(),
        Rule::new(
            &["spec", "blockSizeBits"],
            FORBIDDEN,
            "self == oldSelf",
            "is fixed for the life of a pool, because blocks of that size are in use; make another pool",
        ),
        Rule::new(
            SUBNETS,
            FORBIDDEN,
            "oldSelf.all(s, self.indexOf(s) == oldSelf.indexOf(s))",
            "entries are in use, so they can be neither changed, moved nor removed; append new ones at the end, or make another pool",
        ),
        Rule::new(
            ENTRY,
            REQUIRED,
            "has(self.ipv4) || has(self.ipv6)",
            "has no subnet; set ipv4, ipv6, or both",
        ),
        Rule::new(
            ENTRY,
            INVALID,
            same_size(),
            "ipv4 and ipv6 must have as many addresses; the prefix length of ipv6 is that of ipv4 plus 96",
        ),
    ];
    let fits = FAMILIES
        .map(|(field, family, bits, _)| {
            format!(
                "(!({0}) || cidr(s.{field}).ip().family() != {family} || {bits} - cidr(s.{field}).prefixLength() >= self.blockSizeBits)",
                readable("s", field)
            )
        })
        .join(" && ");
    rules.push(
        Rule::new(
            &["spec"],
            INVALID,
            format!("self.subnets.all(s, {fits})"),
            "a subnet is smaller than one block of 2^blockSizeBits addresses; use a shorter prefix, or a smaller spec.blockSizeBits",
        )
        .field(".subnets"),
    );
    rules.extend(also_when_made(
        SUBNETS,
        |list| format!("{list}.all(s, {})", uniform(list)),
        "all entries of a pool have the same families; make another pool for the others",
    ));
    for (field, family, _, message) in FAMILIES {
        let at: &[&str] =
            if family == 4 { &["spec", "subnets", "[]", "ipv4"] } else { &["spec", "subnets", "[]", "ipv6"] };
        rules.push(Rule::new(at, INVALID, of_family(family), message));
        rules.extend(also_when_made(
            SUBNETS,
            |list| format!("{list}.size() > {OVERLAP_LIMIT} || {list}.all(a, {})", alone(list, field)),
            "two subnets overlap, so addresses would be given twice; remove one of them",
        ));
    }
    rules
}

/// A rule on a new list, and on a changed one unless the old list broke it already. Two rules: what an optional
/// old value holds has no bounds for the server's estimate of costs.
fn also_when_made(
    at: &'static [&'static str],
    rule: impl Fn(&str) -> String,
    message: &'static str,
) -> [Rule; 2] {
    let made = format!("oldSelf.hasValue() || {}", rule("self"));
    let changed = format!("{} || !({})", rule("self"), rule("oldSelf"));
    [Rule::new(at, INVALID, made, message).optional_old(), Rule::new(at, INVALID, changed, message)]
}

/// The entry `s` has the families of the list's first one.
fn uniform(list: &str) -> String {
    format!("has(s.ipv4) == has({list}[0].ipv4) && has(s.ipv6) == has({list}[0].ipv6)")
}

/// The network of the entry `a` holds exactly one of the list: itself.
fn alone(list: &str, field: &str) -> String {
    format!(
        "!({}) || {list}.exists_one(b, {} && cidr(a.{field}).containsCIDR(b.{field}))",
        readable("a", field),
        readable("b", field)
    )
}

fn of_family(family: i64) -> String {
    format!("isCIDR(self) && cidr(self).ip().family() == {family}")
}

fn block() -> Vec<Rule> {
    let fixed =
        "is fixed for the life of a block, because its addresses are in use; delete the block instead";
    vec![
        Rule::new(&["index"], FORBIDDEN, "self == oldSelf", fixed),
        Rule::new(&["ipv4"], FORBIDDEN, "self == oldSelf", fixed),
        Rule::new(&["ipv6"], FORBIDDEN, "self == oldSelf", fixed),
        Rule::new(&["ipv4"], INVALID, of_family(4), FAMILIES[0].3),
        Rule::new(&["ipv6"], INVALID, of_family(6), FAMILIES[1].3),
        Rule::new(
            &[],
            FORBIDDEN,
            "has(self.ipv4) == has(oldSelf.ipv4) && has(self.ipv6) == has(oldSelf.ipv6)",
            "ipv4 and ipv6 are fixed for the life of a block; delete the block instead",
        ),
        Rule::new(
            &[],
            INVALID,
            format!("oldSelf.hasValue() || ((has(self.ipv4) || has(self.ipv6)) && ({}))", same_size()),
            "a block has ipv4, ipv6, or both with as many addresses",
        )
        .optional_old(),
    ]
}

fn request() -> Vec<Rule> {
    let fixed = "is fixed for the life of a request; delete it and make another one";
    vec![
        Rule::new(&["spec", "nodeName"], FORBIDDEN, "self == oldSelf", fixed),
        Rule::new(&["spec", "poolName"], FORBIDDEN, "self == oldSelf", fixed),
    ]
}

fn egress() -> Vec<Rule> {
    const PDB: &[&str] = &["spec", "podDisruptionBudget"];
    const NUMBERS: [&[&str]; 2] = [
        &["spec", "podDisruptionBudget", "minAvailable"],
        &["spec", "podDisruptionBudget", "maxUnavailable"],
    ];
    let mut rules = vec![
        Rule::new(
            &[],
            REQUIRED,
            "has(self.spec) || (oldSelf.hasValue() && !has(oldSelf.value().spec))",
            "an Egress has at least one destination; add spec.destinations, where 0.0.0.0/0 and ::/0 are everything",
        )
        .field(".spec")
        .optional_old(),
        Rule::new(
            &[],
            INVALID,
            "oldSelf.hasValue() || self.metadata.name.matches('^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$')",
            "metadata.name: the Egress gets a Service of the same name, so it has at most 63 lower case letters, digits and '-', begins with a letter and does not end with '-'",
        )
        .optional_old(),
        Rule::new(
            &["spec", "destinations", "[]"],
            INVALID,
            "isCIDR(self)",
            "must be a network in CIDR format, such as 10.2.0.0/16 or fd00:2::/112; one address is written with /32 or /128",
        ),
        Rule::new(
            &["spec", "strategy"],
            INVALID,
            "has(self.type) && self.type in ['Recreate', 'RollingUpdate']",
            "type must be \"Recreate\" or \"RollingUpdate\"",
        )
        .field(".type"),
        Rule::new(
            PDB,
            INVALID,
            "!has(self.minAvailable) || !has(self.maxUnavailable)",
            "minAvailable and maxUnavailable cannot both be set; remove one of them",
        ),
    ];
    rules.extend(NUMBERS.map(|at| {
        Rule::new(
            at,
            INVALID,
            "type(self) == int ? self >= 0 : type(self) == string && self.matches('^0*(100|[0-9]{1,2})%$')",
            "must be a number of pods, such as 1, or a percentage up to 100%, such as \"50%\"",
        )
    }));
    rules
}
