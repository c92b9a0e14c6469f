//! The single permissions of a role: one verb on one resource of one group, for one object or all.

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

/// What a rule may have. Others (`nonResourceURLs`) are asked for by requests that nobody records, so no role has them.
const FIELDS: [&str; 4] = ["apiGroups", "resources", "verbs", "resourceNames"];

/// Each permission of a role in words, and the role without it.
///
/// # Errors
/// When a rule gives more than can be looked at one by one.
pub(super) fn each_without_one(role: &Value) -> Result<Vec<(String, Value)>> {
    let mut rules = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        rules.extend(single(rule)?);
    }
    let without = |one: usize| {
        let mut role = role.clone();
        role["rules"] =
            rules.iter().enumerate().filter(|(of, _)| *of != one).map(|(_, rule)| rule.clone()).collect();
        role
    };
    Ok(rules.iter().enumerate().map(|(one, rule)| (in_words(rule), without(one))).collect())
}

/// A rule as rules that give one thing each.
fn single(rule: &Value) -> Result<Vec<Value>> {
    if let Some(field) =
        rule.as_object().into_iter().flat_map(Map::keys).find(|field| !FIELDS.contains(&field.as_str()))
    {
        bail!("a rule has {field}, which is not looked at: {rule}");
    }
    let mut rules = vec![json!({})];
    for field in FIELDS {
        let Some(words) = rule.get(field) else { continue };
        let words: Vec<&Value> = words.as_array().into_iter().flatten().collect();
        if words.is_empty() || words.iter().any(|word| word.as_str().is_none_or(|word| word.contains('*'))) {
            bail!("a rule's {field} are not words that stand for one thing each: {rule}");
        }
        let with = |rule: &Value, word: &Value| {
            let mut rule = rule.clone();
            rule[field] = json!([word]);
            rule
        };
        rules = rules.iter().flat_map(|rule| words.iter().map(move |word| with(rule, word))).collect();
    }
    Ok(rules)
}

fn in_words(rule: &Value) -> String {
    let words: Vec<&str> = ["verbs", "resources", "apiGroups", "resourceNames"]
        .into_iter()
        .filter_map(|field| rule[field][0].as_str())
        .filter(|word| !word.is_empty())
        .collect();
    words.join(" ")
}

#[test]
fn every_part_of_a_rule_is_taken_away_alone() {
    let role = json!({"kind": "Role", "rules": [
        {"apiGroups": ["", "apps"], "resources": ["a", "a/status"], "verbs": ["get"], "resourceNames": ["x", "y"]},
        {"apiGroups": [""], "resources": ["b"], "verbs": ["list", "watch"]},
    ]});
    let all = each_without_one(&role).unwrap();
    let words: Vec<&str> = all.iter().map(|(words, _)| words.as_str()).collect();
    assert_eq!(words.len(), 8 + 2);
    for wanted in ["get a x", "get a/status apps y", "list b", "watch b"] {
        assert!(words.contains(&wanted), "{wanted} is not in {words:?}");
    }
    for (words, without) in &all {
        let left: Vec<String> = without["rules"].as_array().unwrap().iter().map(in_words).collect();
        assert!(left.len() == 9 && !left.contains(words), "{words}: {left:?}");
    }
}

#[test]
fn what_cannot_be_looked_at_is_an_error() {
    for rule in [
        json!({"nonResourceURLs": ["/metrics"], "verbs": ["get"]}),
        json!({"apiGroups": ["*"], "resources": ["a"], "verbs": ["get"]}),
        json!({"apiGroups": [""], "resources": ["*/status"], "verbs": ["get"]}),
        json!({"apiGroups": [""], "resources": ["a"], "verbs": ["get"], "resourceNames": []}),
    ] {
        assert!(each_without_one(&json!({"rules": [rule]})).is_err(), "{rule}");
    }
    assert!(each_without_one(&json!({"aggregationRule": {}})).unwrap().is_empty());
}
