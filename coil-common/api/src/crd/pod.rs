//! What the published schema of a pod template says beside types: which lists are maps and by which
//! keys, what is set as a whole, what has a default. Without it a server-side apply would replace lists
//! that it merges in a Pod.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSON, JSONSchemaProps, JSONSchemaPropsOrArray as Items, JSONSchemaPropsOrBool as Additional,
};
use serde_json::{Value, json};

/// Lists whose items have keys.
const KEYED: &[(&str, &[&str])] = &[
    ("claims", &["name"]),
    ("containers", &["name"]),
    ("env", &["name"]),
    ("ephemeralContainers", &["name"]),
    ("hostAliases", &["ip"]),
    ("imagePullSecrets", &["name"]),
    ("initContainers", &["name"]),
    ("ports", &["containerPort", "protocol"]),
    ("resourceClaims", &["name"]),
    ("schedulingGates", &["name"]),
    ("topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    ("volumeDevices", &["devicePath"]),
    ("volumeMounts", &["mountPath"]),
    ("volumes", &["name"]),
];

/// References by name, whose name is empty unless it is given.
const REFERENCES: &[&str] = &[
    "configMap",
    "configMapKeyRef",
    "configMapRef",
    "imagePullSecrets[]",
    "nodePublishSecretRef",
    "secret",
    "secretKeyRef",
    "secretRef",
];

/// Objects that are set as a whole, besides [`REFERENCES`].
const WHOLE: &[&str] = &[
    "dataSource",
    "fieldRef",
    "labelSelector",
    "namespaceSelector",
    "nodeSelector",
    "nodeSelectorTerms[]",
    "preference",
    "requiredDuringSchedulingIgnoredDuringExecution",
    "resourceFieldRef",
    "selector",
];

/// Fields that have a default: object, field, value.
fn defaults() -> [(&'static str, &'static str, Value); 10] {
    [
        ("azureDisk", "fsType", json!("ext4")),
        ("azureDisk", "readOnly", json!(false)),
        ("grpc", "service", json!("")),
        ("iscsi", "iscsiInterface", json!("default")),
        ("ports[]", "protocol", json!("TCP")),
        ("rbd", "keyring", json!("/etc/ceph/keyring")),
        ("rbd", "pool", json!("rbd")),
        ("rbd", "user", json!("admin")),
        ("scaleIO", "fsType", json!("xfs")),
        ("scaleIO", "storageMode", json!("ThinProvisioned")),
    ]
}

/// Quantities, and maps of quantities.
const QUANTITIES: &[&str] = &["divisor", "limits{}", "overhead{}", "requests{}", "sizeLimit"];
const QUANTITY: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// Completes the schema of a pod's specification.
pub(super) fn complete(spec: &mut JSONSchemaProps) {
    visit("", spec);
}

fn visit(name: &str, schema: &mut JSONSchemaProps) {
    schema.description = None;
    for (property, below) in schema.properties.iter_mut().flatten() {
        visit(property, below);
    }
    match &mut schema.items {
        Some(Items::Schema(item)) => visit(&format!("{name}[]"), item),
        Some(Items::Schemas(items)) => items.iter_mut().for_each(|item| visit(&format!("{name}[]"), item)),
        None => {}
    }
    if let Some(Additional::Schema(values)) = &mut schema.additional_properties {
        visit(&format!("{name}{{}}"), values);
    }
    match schema.type_.as_deref() {
        Some("array") => list(name, schema),
        Some("object") => object(name, schema),
        _ if QUANTITIES.contains(&name) => schema.pattern = Some(QUANTITY.to_owned()),
        _ => {}
    }
}

fn list(name: &str, schema: &mut JSONSchemaProps) {
    let keys = KEYED.iter().find(|(list, _)| *list == name).map(|(_, keys)| *keys);
    schema.x_kubernetes_list_type = Some(if keys.is_some() { "map" } else { "atomic" }.to_owned());
    schema.x_kubernetes_list_map_keys = keys.map(|keys| keys.iter().map(ToString::to_string).collect());
}

fn object(name: &str, schema: &mut JSONSchemaProps) {
    let named = schema.properties.as_ref().is_some_and(|p| p.contains_key("name"));
    let reference = named && REFERENCES.contains(&name);
    if reference {
        set_default(schema, "name", json!(""));
        schema.required = schema.required.take().map(|r| r.into_iter().filter(|f| f != "name").collect());
        schema.required = schema.required.take().filter(|r: &Vec<String>| !r.is_empty());
    }
    if reference || WHOLE.contains(&name) {
        schema.x_kubernetes_map_type = Some("atomic".to_owned());
    }
    for (object, field, value) in defaults() {
        if object == name {
            set_default(schema, field, value);
        }
    }
    // The metadata of a claim's template is any metadata.
    if name == "metadata" {
        schema.properties = None;
    }
}

fn set_default(schema: &mut JSONSchemaProps, field: &str, value: Value) {
    if let Some(schema) = schema.properties.as_mut().and_then(|p| p.get_mut(field)) {
        schema.default = Some(JSON(value));
    }
}
