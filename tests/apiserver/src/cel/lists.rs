//! Kubernetes' functions on lists, and those on strings by regular expression.

#![expect(clippy::needless_pass_by_value, reason = "the cel crate gives a function its arguments in a Vec")]

use std::cmp::Ordering;

use cel::common::types::{CelBool, CelInt, CelList, CelString, DYN_TYPE, LIST_TYPE};
use cel::common::value::{CowVal, Val};
use cel::{DeclarationError, Env, ExecutionError, add_member_overload};
use regex::Regex;

use super::items;

type Answer<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

fn order(a: &dyn Val, b: &dyn Val) -> Result<Ordering, ExecutionError> {
    match a.as_comparer() {
        Some(comparer) => comparer.compare(b),
        None => Err(ExecutionError::no_such_overload("_<_", vec![a.get_type().name().to_owned()])),
    }
}

fn is_sorted<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    for pair in items(args[0].as_ref()).windows(2) {
        if order(pair[0], pair[1])? == Ordering::Greater {
            return Ok(CowVal::owned(CelBool::from(false)));
        }
    }
    Ok(CowVal::owned(CelBool::from(true)))
}

fn extreme<'b, 'v>(args: &[CowVal<'b, 'v>], function: &str, wanted: Ordering) -> Answer<'b, 'v> {
    let all = items(args[0].as_ref());
    let mut found = *all.first().ok_or_else(|| {
        ExecutionError::function_error(function, format!("{function} called on empty list"))
    })?;
    for item in &all[1..] {
        if order(*item, found)? == wanted {
            found = *item;
        }
    }
    Ok(CowVal::Owned(found.clone_as_boxed()))
}

fn min<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    extreme(&args, "min", Ordering::Less)
}

fn max<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    extreme(&args, "max", Ordering::Greater)
}

fn sum<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let mut total: Box<dyn Val + 'v> = Box::new(CelInt::from(0));
    for (index, item) in items(args[0].as_ref()).into_iter().enumerate() {
        total = match (index, total.as_adder()) {
            (0, _) => item.clone_as_boxed(),
            (_, Some(adder)) => adder.add(item)?.into_owned(),
            (_, None) => return Err(ExecutionError::no_such_overload("sum", Vec::new())),
        };
    }
    Ok(CowVal::Owned(total))
}

fn position(args: &[CowVal<'_, '_>], mut indexes: impl FnMut(usize) -> Option<usize>) -> i64 {
    let all = items(args[0].as_ref());
    let mut step = 0;
    while let Some(index) = indexes(step).filter(|index| *index < all.len()) {
        if all[index].equals(args[1].as_ref()) {
            return i64::try_from(index).unwrap_or(i64::MAX);
        }
        step += 1;
    }
    -1
}

fn index_of<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    Ok(CowVal::owned(CelInt::from(position(&args, Some))))
}

fn last_index_of<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let count = items(args[0].as_ref()).len();
    Ok(CowVal::owned(CelInt::from(position(&args, |step| count.checked_sub(step + 1)))))
}

fn regex(function: &str, pattern: &CelString<'_>) -> Result<Regex, ExecutionError> {
    Regex::new(pattern.inner())
        .map_err(|error| ExecutionError::function_error(function, format!("Illegal regex: {error}")))
}

fn find(text: &CelString<'_>, pattern: &CelString<'_>) -> Result<CelString<'static>, ExecutionError> {
    let found = regex("find", pattern)?.find(text.inner()).map(|found| found.as_str().to_owned());
    Ok(found.unwrap_or_default().into())
}

fn find_all(text: &CelString<'_>, pattern: &CelString<'_>) -> Result<CelList<'static>, ExecutionError> {
    let regex = regex("findAll", pattern)?;
    let found = regex.find_iter(text.inner());
    let found = found.map(|found| Box::new(CelString::from(found.as_str().to_owned())) as Box<dyn Val>);
    Ok(CelList::from(found.collect::<Vec<_>>()))
}

/// Declares the libraries.
pub(super) fn extension(env: &mut Env) -> Result<(), DeclarationError> {
    env.add_member_overload("isSorted", "list_is_sorted", LIST_TYPE, vec![], is_sorted)?;
    env.add_member_overload("min", "list_min", LIST_TYPE, vec![], min)?;
    env.add_member_overload("max", "list_max", LIST_TYPE, vec![], max)?;
    env.add_member_overload("sum", "list_sum", LIST_TYPE, vec![], sum)?;
    env.add_member_overload("indexOf", "list_index_of", LIST_TYPE, vec![DYN_TYPE], index_of)?;
    env.add_member_overload("lastIndexOf", "list_last_index_of", LIST_TYPE, vec![DYN_TYPE], last_index_of)?;
    add_member_overload!(env, fn find: (CelString<'_>, CelString<'_>) -> Result<CelString<'_>>)?;
    add_member_overload!(env, fn find_all: (CelString<'_>, CelString<'_>) -> Result<CelList<'_>>)?;
    Ok(())
}
