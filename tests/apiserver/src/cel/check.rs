//! The check of an expression's types before it ever runs: what makes the server refuse
//! a CRD. It knows the fields of the schema and the functions' signatures; where it cannot
//! tell a type, it accepts.

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr, SourceInfo,
};
use serde_json::Value;

use super::types::Ty;
use super::{ENV, OLD, SELF, signatures};
use crate::schema::Schema;

/// What is wrong with a rule of a schema: the key of the rule that is wrong, and why.
pub(crate) fn check(schema: &Schema, root: bool, rule: &Value) -> Option<(&'static str, String)> {
    let text = |key: &str| rule.get(key).and_then(Value::as_str).unwrap_or_default();
    let optional = rule.get("optionalOldSelf").and_then(Value::as_bool).unwrap_or(false);
    match typed(schema, root, text("rule"), optional) {
        Err(errors) => return Some(("rule", format!("compilation failed: {errors}"))),
        Ok(Ty::Bool | Ty::Dyn) => {}
        Ok(_) => return Some(("rule", "cel expression must evaluate to a bool".into())),
    }
    if text("messageExpression").is_empty() {
        return None;
    }
    match typed(schema, root, text("messageExpression"), optional) {
        Err(errors) => Some(("messageExpression", format!("messageExpression compilation failed: {errors}"))),
        Ok(Ty::String | Ty::Dyn) => None,
        Ok(_) => Some(("messageExpression", "messageExpression must evaluate to a string".into())),
    }
}

fn typed<'a>(schema: &'a Schema, root: bool, text: &str, optional_old: bool) -> Result<Ty<'a>, String> {
    let program = ENV.compile(text).map_err(|errors| errors.to_string())?;
    let own = Ty::of(schema, root);
    let old = if optional_old { Ty::Optional(Box::new(own.clone())) } else { own.clone() };
    let scope = vec![(SELF.to_owned(), own), (OLD.to_owned(), old)];
    let mut checker = Checker { scope, source: program.source_info(), text, issues: Vec::new() };
    let result = checker.of(program.expression());
    if checker.issues.is_empty() { Ok(result) } else { Err(checker.issues.join("\n")) }
}

struct Checker<'a, 'e> {
    /// Variables with their types, the innermost last.
    scope: Vec<(String, Ty<'a>)>,
    source: &'e SourceInfo,
    text: &'e str,
    issues: Vec<String>,
}

impl<'a> Checker<'a, '_> {
    fn of(&mut self, expr: &IdedExpr) -> Ty<'a> {
        match &expr.expr {
            Expr::Unspecified => Ty::Dyn,
            Expr::Struct(_) => Ty::Dyn,
            Expr::Literal(literal) => of_literal(literal),
            Expr::Ident(name) => self.ident(expr.id, name),
            Expr::Select(select) => self.select(expr.id, select),
            Expr::Call(call) => self.call(expr.id, call),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::List(list) => {
                let elements: Vec<Ty<'a>> = list.elements.iter().map(|element| self.of(element)).collect();
                let same = elements.iter().all(|element| element.fits(&elements[0]));
                let inner = elements.into_iter().next().filter(|_| same).unwrap_or(Ty::Dyn);
                Ty::List(Box::new(inner))
            }
            Expr::Map(map) => {
                let mut values = Vec::new();
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.of(&entry.key);
                        values.push(self.of(&entry.value));
                    }
                }
                let same = values.iter().all(|value| value.fits(&values[0]));
                Ty::Map(Box::new(values.into_iter().next().filter(|_| same).unwrap_or(Ty::Dyn)))
            }
        }
    }

    fn ident(&mut self, id: u64, name: &str) -> Ty<'a> {
        const TYPES: [&str; 11] =
            ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type", "dyn"];
        if let Some((_, found)) = self.scope.iter().rev().find(|(have, _)| have == name) {
            return found.clone();
        }
        if TYPES.contains(&name) {
            return Ty::Type;
        }
        self.complain(id, &format!("undeclared reference to '{name}' (in container '')"))
    }

    fn select(&mut self, id: u64, select: &SelectExpr) -> Ty<'a> {
        if qualified(select).is_some_and(|name| name == "net.IP" || name == "net.CIDR") {
            return Ty::Type;
        }
        let operand = self.of(&select.operand);
        match operand.field(&select.field) {
            Ok(_) if select.test => Ty::Bool,
            Ok(found) => found,
            Err(why) => self.complain(id, &why),
        }
    }

    fn call(&mut self, id: u64, call: &CallExpr) -> Ty<'a> {
        let name = call.func_name.as_str();
        // A name with a namespace reads like a method of the namespace.
        if let Some(IdedExpr { expr: Expr::Ident(namespace), .. }) = call.target.as_deref() {
            let qualified = format!("{namespace}.{name}");
            if signatures::exists(&qualified) {
                let arguments: Vec<Ty<'a>> = call.args.iter().map(|argument| self.of(argument)).collect();
                return self.signature(id, &qualified, None, &arguments);
            }
        }
        let receiver = call.target.as_deref().map(|target| self.of(target));
        if name == "_?._" || name == "_[?_]" {
            let operand = call.args.first().map_or(Ty::Dyn, |argument| self.of(argument));
            let field = call.args.get(1).map(|argument| &argument.expr);
            let inner = match (field, &operand) {
                (Some(Expr::Literal(LiteralValue::String(field))), operand) if name == "_?._" => {
                    match operand.field(field.inner()) {
                        Ok(Ty::Optional(inner)) => *inner,
                        Ok(found) => found,
                        Err(why) => return self.complain(id, &why),
                    }
                }
                (_, Ty::Optional(inner)) => inner.element(),
                (_, operand) => operand.element(),
            };
            return Ty::Optional(Box::new(inner));
        }
        let arguments: Vec<Ty<'a>> = call.args.iter().map(|argument| self.of(argument)).collect();
        if let Some(result) = operator(name, &arguments) {
            return result.unwrap_or_else(|| self.no_overload(id, name, None, &arguments));
        }
        self.signature(id, name, receiver.as_ref(), &arguments)
    }

    fn signature(&mut self, id: u64, name: &str, receiver: Option<&Ty<'a>>, arguments: &[Ty<'a>]) -> Ty<'a> {
        if !signatures::exists(name) {
            return self.complain(id, &format!("undeclared reference to '{name}' (in container '')"));
        }
        match signatures::result(name, receiver, arguments) {
            Some(found) => found,
            None => self.no_overload(id, name, receiver, arguments),
        }
    }

    fn no_overload(
        &mut self,
        id: u64,
        name: &str,
        receiver: Option<&Ty<'a>>,
        arguments: &[Ty<'a>],
    ) -> Ty<'a> {
        let list: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let list = format!("({})", list.join(", "));
        let applied = receiver.map_or_else(|| list.clone(), |receiver| format!("{receiver}.{list}"));
        self.complain(id, &format!("found no matching overload for '{name}' applied to '{applied}'"))
    }

    fn comprehension(&mut self, comprehension: &ComprehensionExpr) -> Ty<'a> {
        let range = self.of(&comprehension.iter_range);
        let Some(item) = range.iterated() else {
            let what = "cannot be range of a comprehension (must be list, map, or dynamic)";
            return self
                .complain(comprehension.iter_range.id, &format!("expression of type '{range}' {what}"));
        };
        let depth = self.scope.len();
        let accumulated = self.of(&comprehension.accu_init);
        match &comprehension.iter_var2 {
            Some(second) => {
                let first = if matches!(range, Ty::Map(_)) { Ty::String } else { Ty::Int };
                self.scope.push((comprehension.iter_var.clone(), first));
                self.scope.push((second.clone(), range.element()));
            }
            None => self.scope.push((comprehension.iter_var.clone(), item)),
        }
        let outside = self.scope.clone();
        self.scope.push((comprehension.accu_var.clone(), accumulated.clone()));
        self.of(&comprehension.loop_cond);
        let step = self.of(&comprehension.loop_step);
        let accumulated = if step.fits(&accumulated) { step } else { accumulated };
        self.scope = outside;
        self.scope.truncate(depth);
        self.scope.push((comprehension.accu_var.clone(), accumulated));
        let result = self.of(&comprehension.result);
        self.scope.truncate(depth);
        result
    }

    /// Notes an issue as cel-go prints it, and goes on with an unknown type.
    fn complain(&mut self, id: u64, message: &str) -> Ty<'a> {
        let start = self.source.offset_for(id).map_or(0, |(start, _)| start as usize);
        let before: String = self.text.chars().take(start).collect();
        let line = before.matches('\n').count();
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
        let snippet = self.text.lines().nth(line).unwrap_or_default();
        let dots = ".".repeat(column);
        self.issues.push(format!(
            "ERROR: <input>:{}:{}: {message}\n | {snippet}\n | {dots}^",
            line + 1,
            column + 1
        ));
        Ty::Dyn
    }
}

fn qualified(select: &SelectExpr) -> Option<String> {
    match &select.operand.expr {
        Expr::Ident(name) => Some(format!("{name}.{}", select.field)),
        _ => None,
    }
}

fn of_literal<'a>(literal: &LiteralValue) -> Ty<'a> {
    match literal {
        LiteralValue::Boolean(_) => Ty::Bool,
        LiteralValue::Bytes(_) => Ty::Bytes,
        LiteralValue::Double(_) => Ty::Double,
        LiteralValue::Int(_) => Ty::Int,
        LiteralValue::Null => Ty::Null,
        LiteralValue::String(_) => Ty::String,
        LiteralValue::UInt(_) => Ty::Uint,
    }
}

/// The result of an operator: `None` when the name is none, `Some(None)` when it does not
/// take these operands.
fn operator<'a>(name: &str, operands: &[Ty<'a>]) -> Option<Option<Ty<'a>>> {
    use Ty::{Bool, Bytes, Double, Duration, Dyn, Int, List, Map, String, Time, Uint};
    let all_bool = || operands.iter().all(|operand| matches!(operand, Bool | Dyn)).then_some(Bool);
    Some(match (name, operands) {
        ("_&&_" | "_||_" | "!_" | "@not_strictly_false", _) => all_bool(),
        ("_?_:_", [Bool | Dyn, a, b]) if a.fits(b) => {
            Some(if matches!(a, Dyn) { b.clone() } else { a.clone() })
        }
        ("_==_" | "_!=_", [a, b]) => (a.fits(b) || a.is_number() && b.is_number()).then_some(Bool),
        ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => {
            let ordered =
                |ty: &Ty<'_>| ty.is_number() || matches!(ty, Bool | String | Bytes | Time | Duration | Dyn);
            let same = a.fits(b) || a.is_number() && b.is_number();
            (ordered(a) && ordered(b) && same).then_some(Bool)
        }
        ("_+_", [Time, Duration | Dyn] | [Duration, Time]) => Some(Time),
        ("_-_", [Time, Time]) => Some(Duration),
        ("_-_", [Time, Duration]) => Some(Time),
        ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", [Dyn, other] | [other, Dyn]) => Some(other.clone()),
        ("_+_" | "_-_", [Duration, Duration]) => Some(Duration),
        ("_+_", [String, String]) => Some(String),
        ("_+_", [Bytes, Bytes]) => Some(Bytes),
        ("_+_", [List(a), List(b)]) => {
            a.fits(b).then(|| List(if matches!(**a, Dyn) { b.clone() } else { a.clone() }))
        }
        ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", [Int, Int]) => Some(Int),
        ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", [Uint, Uint]) => Some(Uint),
        ("_+_" | "_-_" | "_*_" | "_/_", [Double, Double]) => Some(Double),
        ("-_", [Int | Double | Dyn]) => operands.first().cloned(),
        ("@in", [item, List(inner)]) => item.fits(inner).then_some(Bool),
        ("@in", [item, Map(_)]) => item.fits(&String).then_some(Bool),
        ("@in", [_, Dyn]) => Some(Bool),
        ("_[_]", [List(inner), Int | Uint | Dyn]) => Some((**inner).clone()),
        ("_[_]", [Map(inner), String | Dyn]) => Some((**inner).clone()),
        ("_[_]", [Dyn, _]) => Some(Dyn),
        (name, _) if name.starts_with(['_', '@', '!', '-']) => None,
        _ => return None,
    })
}
