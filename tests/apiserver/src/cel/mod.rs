//! `x-kubernetes-validations`: rules in the Common Expression Language.
//!
//! The `cel` crate parses and evaluates. What Kubernetes adds is here: the functions of
//! its libraries, values typed by the schema, the check of types that refuses a wrong rule
//! with its CRD, and the words of its errors.

mod check;
mod lists;
mod net;
mod signatures;
mod types;
mod value;

use std::fmt;
use std::sync::{Arc, LazyLock};

use cel::common::types::CelOptional;
use cel::common::value::Val;
use cel::extensions;
use cel::{Context, Env, ExecutionError, Program};
use serde_json::Value;

use crate::schema::Schema;
use crate::status::FieldError;

pub(crate) use check::check;

/// The environment that every rule runs in.
static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    env.add_extension(extensions::strings)
        .and_then(|()| env.add_extension(lists::extension))
        .and_then(|()| env.add_extension(net::extension))
        .expect("no name is declared twice");
    Arc::new(env)
});

/// The present value.
const SELF: &str = "self";
/// The value before an update.
const OLD: &str = "oldSelf";

/// A compiled rule of a schema.
#[derive(Clone)]
pub(crate) struct Rule {
    text: String,
    program: Result<Arc<Program>, String>,
    message: Option<String>,
    message_program: Option<Arc<Program>>,
    reason: Option<String>,
    field: Option<String>,
    /// It compares with the old value.
    pub(crate) transition: bool,
    /// The old value is an optional: the rule runs on creation as well.
    optional_old: bool,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule").field("text", &self.text).finish_non_exhaustive()
    }
}

/// The rules of a schema node's `x-kubernetes-validations`.
pub(crate) fn rules(source: &Value) -> Vec<Rule> {
    let list = source.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten();
    list.map(rule).collect()
}

fn rule(source: &Value) -> Rule {
    let text = |key: &str| source.get(key).and_then(Value::as_str).map(str::trim).filter(|s| !s.is_empty());
    let rule = text("rule").unwrap_or_default();
    let program = ENV.compile(rule).map(Arc::new).map_err(|errors| errors.to_string());
    let compile = |text: &str| ENV.compile(text).ok().map(Arc::new);
    Rule {
        text: rule.to_owned(),
        transition: program.as_ref().is_ok_and(|program| program.references().has_variable(OLD)),
        program,
        message: text("message").map(str::to_owned),
        message_program: text("messageExpression").and_then(compile),
        reason: text("reason").map(str::to_owned),
        field: text("fieldPath").map(field_path),
        optional_old: source.get("optionalOldSelf").and_then(Value::as_bool).unwrap_or(false),
    }
}

/// A rule's `fieldPath` as errors write it: without the dot at its start.
fn field_path(path: &str) -> String {
    path.trim_start_matches('.').replace("['", "[").replace("']", "]")
}

impl Rule {
    /// What is wrong with a value at `path`, when it breaks the rule.
    pub(crate) fn broken(
        &self,
        schema: &Schema,
        now: &Value,
        old: Option<&Value>,
        path: &str,
    ) -> Option<FieldError> {
        if self.transition && old.is_none() && !self.optional_old {
            return None;
        }
        let complain = |detail: String| Some(FieldError::invalid(path, &schema.type_name().into(), detail));
        let program = match &self.program {
            Ok(program) => program,
            Err(error) => return complain(format!("rule compile error: compilation failed: {error}")),
        };
        let mut context = Context::with_env(ENV.clone());
        let seen = if path.is_empty() { value::root } else { value::of };
        context.add_variable_as_val(SELF, seen(schema, now));
        let before = old.map(|old| seen(schema, old));
        if self.optional_old {
            context.add_variable_as_val(OLD, Box::new(CelOptional::from(before)));
        } else if let Some(before) = before {
            context.add_variable_as_val(OLD, before);
        }
        match program.execute(&context) {
            Ok(cel::Value::Bool(true)) => None,
            Ok(cel::Value::Bool(false)) => Some(self.failure(schema, now, path, &context)),
            Ok(_) => complain("cel expression must evaluate to a bool".into()),
            Err(error) => complain(self.evaluation_error(&error)),
        }
    }

    fn failure(&self, schema: &Schema, now: &Value, path: &str, context: &Context<'_, '_>) -> FieldError {
        let told = self.message_program.as_ref().and_then(|program| match program.execute(context) {
            Ok(cel::Value::String(text)) => Some(text.trim().to_owned()),
            _ => None,
        });
        let told = told.filter(|text| !text.is_empty() && !text.contains('\n'));
        let detail = told
            .or_else(|| self.message.clone())
            .unwrap_or_else(|| format!("failed rule: {}", self.text.trim()));
        let path = match &self.field {
            Some(field) if path.is_empty() => field.clone(),
            Some(field) if field.starts_with('[') => format!("{path}{field}"),
            Some(field) => format!("{path}.{field}"),
            None => path.to_owned(),
        };
        match self.reason.as_deref() {
            Some("FieldValueForbidden") => FieldError::forbidden(path, detail),
            Some("FieldValueRequired") => FieldError::required(path, &detail),
            Some("FieldValueDuplicate") => FieldError::duplicate_of(path, schema.scalar(now)),
            _ => FieldError::invalid_of(path, schema.scalar(now), detail),
        }
    }

    fn evaluation_error(&self, error: &ExecutionError) -> String {
        let about = self.message.as_deref().unwrap_or(&self.text);
        match error {
            ExecutionError::NoSuchOverload(_) | ExecutionError::ValuesNotComparable(..) => format!(
                "'no such overload': call arguments did not match a supported operator, function or macro \
                 signature for rule: {about}"
            ),
            ExecutionError::NoSuchKey(key) => format!("no such key: {key} evaluating rule: {about}"),
            ExecutionError::FunctionError { message, .. } => format!("{message} evaluating rule: {about}"),
            ExecutionError::IndexOutOfBounds(cel::Value::Int(index)) => {
                format!("index out of bounds: {index} evaluating rule: {about}")
            }
            ExecutionError::DivisionByZero(_) => format!("division by zero evaluating rule: {about}"),
            ExecutionError::RemainderByZero(_) => format!("modulus by zero evaluating rule: {about}"),
            ExecutionError::Overflow(..) => format!("integer overflow evaluating rule: {about}"),
            other => format!("{other} evaluating rule: {about}"),
        }
    }
}

/// Casts for the libraries: a list argument as something to go through.
fn items<'b, 'v>(list: &'b (dyn Val + 'v)) -> Vec<&'b (dyn Val + 'v)> {
    let mut items = Vec::new();
    if let Some(list) = list.as_iterable() {
        let mut all = list.iter();
        while let Some(item) = all.next() {
            items.push(item);
        }
    }
    items
}

#[cfg(test)]
mod tests;
