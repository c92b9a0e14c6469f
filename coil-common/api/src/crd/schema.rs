use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps,
};
use kube::core::schema::StructuralSchemaRewriter;
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Value, json};

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
        // The pod template's thousand descriptions would push the object past what
        // `kubectl apply` can keep in its annotation (256 KiB).
        if let Some(template) = properties
            .get_mut("spec")
            .and_then(|s| s.properties.as_mut())
            .and_then(|p| p.get_mut("template"))
            .and_then(|t| t.properties.as_mut())
            .and_then(|p| p.get_mut("spec"))
        {
            strip_descriptions(template);
        }
    }
    crd
}

fn string(description: &str) -> JSONSchemaProps {
    let document = json!({"type": "string", "description": description});
    serde_json::from_value(document).unwrap_or_default()
}

fn strip_descriptions(schema: &mut JSONSchemaProps) {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        JSONSchemaPropsOrArray as Items, JSONSchemaPropsOrBool as Additional,
    };
    schema.description = None;
    schema.properties.iter_mut().flat_map(|p| p.values_mut()).for_each(strip_descriptions);
    match &mut schema.items {
        Some(Items::Schema(item)) => strip_descriptions(item),
        Some(Items::Schemas(items)) => items.iter_mut().for_each(strip_descriptions),
        None => {}
    }
    if let Some(Additional::Schema(values)) = &mut schema.additional_properties {
        strip_descriptions(values);
    }
}
