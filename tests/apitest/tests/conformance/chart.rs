//! The Helm chart renders what the overlays say.
//!
//! helm itself does it where it is on the path. Elsewhere the few words of its language that the chart uses are read here:
//! `if`, `else`, `end`, `range` and `fail` on lines of their own, and values, as they are, as whole numbers or as JSON.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde::Deserialize as _;
use serde_json::{Value, json};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");

/// Objects by kind, namespace and name.
type Objects = BTreeMap<(String, String, String), Value>;

fn read(path: &str) -> String {
    let path = Path::new(DEPLOY).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn objects(text: &str) -> Objects {
    let documents =
        serde_yaml_ng::Deserializer::from_str(text).map(|document| Value::deserialize(document).unwrap());
    let named = documents.filter(|document| !document.is_null()).map(|object| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = (
            text(&object["kind"]),
            text(&object["metadata"]["namespace"]),
            text(&object["metadata"]["name"]),
        );
        (key, object)
    });
    named.collect()
}

/// An overlay, with the hash taken off the name of its configuration.
fn overlay(name: &str) -> Objects {
    let done =
        Command::new("kubectl").arg("kustomize").arg(Path::new(DEPLOY).join("overlays").join(name)).output();
    let text = String::from_utf8(done.unwrap().stdout).unwrap();
    let hashed = text.lines().find_map(|line| {
        let name = line.trim().strip_prefix("name: ")?;
        name.starts_with("coil-config-").then(|| name.to_owned())
    });
    objects(&hashed.map_or(text.clone(), |hashed| text.replace(&hashed, "coil-config")))
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.iter().for_each(|(key, value)| merge(into.entry(key.clone()).or_insert(Value::Null), value));
        }
        (into, from) => *into = from.clone(),
    }
}

/// The chart with some values set.
fn chart(set: &Value) -> Objects {
    rendered(set).unwrap_or_else(|refusal| panic!("{set}: {refusal}"))
}

/// The same, or why the chart refuses the values.
fn rendered(set: &Value) -> Result<Objects, String> {
    if let Some(rendered) = by_helm(set) {
        return rendered.map(|text| objects(&text));
    }
    let mut values: Value = serde_yaml_ng::from_str(&read("chart/values.yaml")).unwrap();
    merge(&mut values, set);
    let mut text = String::new();
    for dir in ["crds", "templates"] {
        for entry in std::fs::read_dir(Path::new(DEPLOY).join("chart").join(dir)).unwrap() {
            let template = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            text += "---\n";
            text += &if dir == "crds" { template } else { render(&template, &values)? };
        }
    }
    Ok(objects(&text))
}

fn by_helm(set: &Value) -> Option<Result<String, String>> {
    let dir = tempfile::tempdir().unwrap();
    let values = dir.path().join("values.json");
    std::fs::write(&values, set.to_string()).unwrap();
    let chart = Path::new(DEPLOY).join("chart");
    let mut command = Command::new("helm");
    command.args(["template", "coil", "--namespace", "kube-system", "--include-crds", "--values"]);
    let done = command.arg(values).arg(chart).output().ok()?;
    let said = |bytes| String::from_utf8(bytes).unwrap();
    Some(if done.status.success() { Ok(said(done.stdout)) } else { Err(said(done.stderr)) })
}

/// What `{{ … }}` of an expression gives.
fn value(expression: &str, values: &Value, item: &Value) -> Value {
    let expression = expression.trim();
    if let Some(of) = expression.strip_suffix("| toJson") {
        return value(of, values, item).to_string().into();
    }
    if let Some(of) = expression.strip_suffix("| int64") {
        let number = value(of, values, item);
        return json!(number.as_str().map_or_else(|| number.as_i64().unwrap(), |text| text.parse().unwrap()));
    }
    if expression == "." {
        return item.clone();
    }
    let path = expression
        .strip_prefix(".Values.")
        .unwrap_or_else(|| panic!("{expression:?} is not understood here"));
    path.split('.').fold(values.clone(), |value, key| value[key].clone())
}

fn holds(condition: &str, values: &Value) -> bool {
    let condition = condition.trim();
    let of = |expression| value(expression, values, &Value::Null);
    if let Some(not) = condition.strip_prefix("not ") {
        return !holds(not.trim_start_matches('(').trim_end_matches(')'), values);
    }
    if let Some(text) = condition.strip_prefix("kindIs \"string\" ") {
        return of(text).is_string();
    }
    if let Some(text) =
        condition.strip_prefix("hasKey (fromJson ").and_then(|c| c.strip_suffix(") \"Error\""))
    {
        return !serde_json::from_str::<Value>(of(text).as_str().unwrap()).is_ok_and(|json| json.is_object());
    }
    of(condition) == true
}

fn inline(line: &str, values: &Value, item: &Value) -> String {
    let Some((before, rest)) = line.split_once("{{") else { return line.to_owned() };
    let (expression, after) = rest.split_once("}}").unwrap();
    let text = match value(expression, values, item) {
        Value::String(text) => text,
        other => other.to_string(),
    };
    format!("{before}{text}{}", inline(after, values, item))
}

fn render(template: &str, values: &Value) -> Result<String, String> {
    let lines: Vec<&str> = template.lines().collect();
    let mut out = String::new();
    block(&lines, values, &Value::Null, &mut out)?;
    Ok(out)
}

/// A directive that has a line to itself.
fn directive(line: &str) -> Option<&str> {
    line.trim().strip_prefix("{{- ")?.strip_suffix(" }}")
}

fn block(lines: &[&str], values: &Value, item: &Value, out: &mut String) -> Result<(), String> {
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        at += 1;
        let Some(words) = directive(line) else {
            *out += &inline(line, values, item);
            out.push('\n');
            continue;
        };
        if let Some(refusal) = words.strip_prefix("fail ") {
            return Err(refusal.trim_matches('"').to_owned());
        }
        // The end, and the else, of this one.
        let (mut depth, mut middle, mut end) = (1, None, at);
        while depth > 0 {
            match directive(lines.get(end).expect("a directive without an end")) {
                Some("end") => depth -= 1,
                Some("else") if depth == 1 => middle = Some(end),
                Some(word) if word.starts_with("if ") || word.starts_with("range ") => depth += 1,
                _ => {}
            }
            end += 1;
        }
        let (first, second) =
            (&lines[at..middle.unwrap_or(end - 1)], middle.map(|middle| &lines[middle + 1..end - 1]));
        if let Some(list) = words.strip_prefix("range ") {
            for item in value(list, values, item).as_array().unwrap() {
                block(first, values, item, out)?;
            }
        } else if holds(words.strip_prefix("if ").unwrap(), values) {
            block(first, values, item, out)?;
        } else if let Some(second) = second {
            block(second, values, item, out)?;
        }
        at = end;
    }
    Ok(())
}

/// A number is as good with a fraction of nothing.
fn without_fractions(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|n| n.fract() == 0.0) {
                *value = json!(whole);
            }
        }
        Value::Object(map) => map.values_mut().for_each(without_fractions),
        Value::Array(list) => list.iter_mut().for_each(without_fractions),
        _ => {}
    }
}

/// The JSON text of the network is as good with other spaces.
fn normal(mut objects: Objects) -> Objects {
    for object in objects.values_mut() {
        without_fractions(object);
        if let Some(Value::String(text)) = object.pointer_mut("/data/cni_netconf") {
            *text = serde_json::from_str::<Value>(text).unwrap().to_string();
        }
    }
    objects
}

/// Values, and the overlay that they are.
fn cases() -> Vec<(&'static str, Value)> {
    let router = json!({"enabled": true});
    vec![
        ("full", json!({})),
        ("with-router", json!({"router": router})),
        ("ipam-only", json!({"egress": {"enabled": false}})),
        ("egress-only", json!({"ipam": {"enabled": false}})),
        ("cert-rotation", json!({"webhooks": {"restartOnCertRefresh": true}})),
        ("own-certificates", json!({"webhooks": {"ownCertificates": true}})),
        ("compat-calico", json!({"coild": {"compatCalico": true}})),
        ("kernel-datapath", json!({"coild": {"kernelDatapath": true}})),
        ("dual-stack", json!({"router": router, "webhooks": {"dualStack": true}})),
    ]
}

#[test]
fn the_chart_is_the_overlays() {
    for (name, set) in cases() {
        let (wanted, mut rendered) = (normal(overlay(name)), normal(chart(&set)));
        // Helm installs the definitions of a chart whatever its values say.
        rendered.retain(|key, _| key.0 != "CustomResourceDefinition" || wanted.contains_key(key));
        assert!(wanted.len() > 20, "{name} has {} objects", wanted.len());
        let names = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&rendered), names(&wanted), "{name}");
        for (key, object) in &wanted {
            assert_eq!(&rendered[key], object, "{name}: {key:?}");
        }
    }
}

#[test]
fn further_flags_come_last() {
    let rendered = chart(&json!({"coild": {"extraArgs": ["--in-cluster-cidrs=100.64.0.0/10"]}}));
    let key = ("DaemonSet".to_owned(), "kube-system".to_owned(), "coild".to_owned());
    let args = &rendered[&key]["spec"]["template"]["spec"]["containers"][0]["args"];
    assert_eq!(args.as_array().unwrap().last().unwrap(), "--in-cluster-cidrs=100.64.0.0/10");
}

/// As `--set` makes a number of them.
#[test]
fn numbers_are_as_good_as_text_where_they_are_one() {
    let args = |table: Value| {
        let rendered = chart(&json!({"ipam": {"enabled": false}, "chained": {"podTableId": table}}));
        let key = ("DaemonSet".to_owned(), "kube-system".to_owned(), "coild".to_owned());
        rendered[&key]["spec"]["template"]["spec"]["containers"][0]["args"].clone()
    };
    assert!(args(json!(255)).as_array().unwrap().contains(&json!("--pod-table-id=255")));
    assert_eq!(args(json!("255")), args(json!(255)));
}

#[test]
fn what_cannot_be_is_refused_in_words() {
    let off = json!({"enabled": false});
    for (set, words) in [
        (json!({"ipam": off, "egress": off}), "enable one"),
        (json!({"image": {"tag": 1.0}}), "--set-string image.tag"),
        (json!({"netconf": "{"}), "netconf is not a JSON object"),
        (json!({"netconf": "[]"}), "netconf is not a JSON object"),
    ] {
        let refusal = rendered(&set).unwrap_err();
        assert!(refusal.contains(words), "{set}: {refusal}");
    }
    let schema: Value = serde_json::from_str(&read("chart/values.schema.json")).unwrap();
    let chained = &schema["properties"]["chained"]["properties"];
    assert_eq!(chained["confName"]["pattern"], r"^[^/]+\.conflist$", "a name, and no path");
}

/// Every value has a type, nothing else is let in, and the defaults are all there.
#[test]
fn the_schema_knows_every_value_and_no_other() {
    fn check(schema: &Value, value: &Value, path: &str) {
        match value {
            Value::Object(map) => {
                assert_eq!(schema["additionalProperties"], false, "{path} lets anything in");
                for (key, value) in map {
                    check(&schema["properties"][key], value, &format!("{path}.{key}"));
                }
            }
            Value::Bool(_) => has(schema, "boolean", path),
            Value::String(_) => has(schema, "string", path),
            Value::Number(_) => has(schema, "integer", path),
            Value::Array(_) => has(schema, "array", path),
            Value::Null => panic!("{path} is nothing"),
        }
    }
    fn has(schema: &Value, wanted: &str, path: &str) {
        let types = &schema["type"];
        let any = types.as_array().is_some_and(|types| types.contains(&wanted.into()));
        assert!(any || types == wanted, "{path} is {wanted}, and {types} is let in");
    }
    let schema: Value = serde_json::from_str(&read("chart/values.schema.json")).unwrap();
    check(&schema, &serde_yaml_ng::from_str(&read("chart/values.yaml")).unwrap(), "values");
    let values: Value = serde_yaml_ng::from_str(&read("chart/values.yaml")).unwrap();
    for (name, schema) in
        schema["properties"].as_object().unwrap().iter().filter(|(name, _)| *name != "global")
    {
        for key in schema["properties"].as_object().into_iter().flatten().map(|(key, _)| key) {
            assert!(!values[name][key].is_null(), "{name}.{key} has no default");
        }
    }
}
