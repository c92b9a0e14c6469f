use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray as Items,
    JSONSchemaPropsOrBool as Additional,
};
use kube::core::schema::StructuralSchemaRewriter;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

use super::{pod, rules};

/// Structural schema of a type, as kube's derive makes it.
pub(super) fn of<T: JsonSchema>() -> Value {
    SchemaSettings::openapi3()
        .with(|s| {
            s.inline_subschemas = true;
            s.meta_schema = None;
        })
        .with_transform(StructuralSchemaRewriter)
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
}

/// A definition from its JSON form, which this crate writes itself.
#[expect(clippy::expect_used, reason = "the document is a literal of this crate; a test reads each one")]
pub(super) fn definition(document: &Value) -> CustomResourceDefinition {
    serde_json::from_value(document.clone()).expect("a literal CustomResourceDefinition")
}

/// What every definition gets: a schema for the whole object that keeps what Coil v2's keeps.
pub(super) fn finish(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let Some(root) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) else {
            continue;
        };
        root.title = None;
        let properties = root.properties.get_or_insert_default();
        properties.insert("apiVersion".into(), string("Version of the API group, coil.cybozu.com/v2."));
        properties.insert("kind".into(), string("Kind of the object."));
        properties.insert(
            "metadata".into(),
            JSONSchemaProps { type_: Some("object".into()), ..Default::default() },
        );
        // Objects without a spec pass in Coil v2; validation of what is in it comes from the webhook.
        root.required = root.required.take().map(|r| r.into_iter().filter(|f| f != "spec").collect());
        root.required = root.required.take().filter(|r: &Vec<String>| !r.is_empty());
        absent_is_not_null(root);
        // The pod template's thousand descriptions would push the object past what
        // `kubectl apply` can keep in its annotation (256 KiB): `pod` leaves them out.
        if let Some(template) = root
            .properties
            .as_mut()
            .and_then(|p| p.get_mut("spec"))
            .and_then(|s| s.properties.as_mut())
            .and_then(|p| p.get_mut("template"))
            .and_then(|t| t.properties.as_mut())
            .and_then(|p| p.get_mut("spec"))
        {
            pod::complete(template);
        }
        version.subresources.get_or_insert_default();
    }
    crd.spec.names.list_kind.get_or_insert_with(|| format!("{}List", crd.spec.names.kind));
    rules::apply(&mut crd);
    crd
}

fn string(description: &str) -> JSONSchemaProps {
    let document = json!({"type": "string", "description": description});
    serde_json::from_value(document).unwrap_or_default()
}

/// An optional field is left out or has a value: a null that is sent is dropped, as in Coil v2.
/// Numbers and texts in one field are written as controller-gen does.
fn absent_is_not_null(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    if schema.x_kubernetes_int_or_string == Some(true) {
        let one = |type_: &str| JSONSchemaProps { type_: Some(type_.into()), ..Default::default() };
        schema.any_of = Some(vec![one("integer"), one("string")]);
    }
    schema.properties.iter_mut().flat_map(|p| p.values_mut()).for_each(absent_is_not_null);
    match &mut schema.items {
        Some(Items::Schema(item)) => absent_is_not_null(item),
        Some(Items::Schemas(items)) => items.iter_mut().for_each(absent_is_not_null),
        None => {}
    }
    if let Some(Additional::Schema(values)) = &mut schema.additional_properties {
        absent_is_not_null(values);
    }
}
