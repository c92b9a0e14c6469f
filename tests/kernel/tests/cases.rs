//! Every case through `BPF_PROG_TEST_RUN`.

use anyhow::{Context as _, Result, ensure};
use coil_kernel_tests::{MARK, Node, Pins};
use coil_packet::{Class, Family, Path, Reason};

/// Return codes: `TCX_NEXT`, `TC_ACT_SHOT`, `TC_ACT_REDIRECT`.
const fn code(class: Class) -> i32 {
    match class {
        Class::Next => -1,
        Class::Drop => 2,
        Class::Sent | Class::Answered => 7,
    }
}

/// The code of a case. What is decapsulated on its way into the pod, or encapsulated on its way into the stack, goes
/// on there.
fn wanted(case: &coil_cases::Case) -> i32 {
    match (case.path, case.reason) {
        (Path::ToPod, Reason::Decapsulated) => code(Class::Next),
        (Path::FromPod, Reason::ToGateway) if case.host_stack => code(Class::Next),
        _ => code(case.reason.class()),
    }
}

#[test]
fn every_case_in_the_kernel() -> Result<()> {
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        let cases = coil_cases::all();
        let mut wrong = vec![];
        for case in &cases {
            let family = if case.net.is_v4() { Family::V4 } else { Family::V6 };
            let header = 14 + if case.net.is_v4() { 20 } else { 40 };
            let outcome = match node.case(case) {
                // The kernel lets no test give a program less than an IP header; the host has run it.
                Err(_) if case.frame.len() < header => continue,
                Ok(outcome) => outcome,
                Err(error) => {
                    wrong.push(format!("{family:?} {}: {error:#}", case.name));
                    continue;
                }
            };
            let expected = match case.reason {
                // Not even looked into.
                Reason::NotForUs => vec![],
                reason => vec![(case.path, family, reason)],
            };
            let counted: Vec<_> = outcome.counted.iter().map(|c| (c.path, c.family, c.reason)).collect();
            if counted != expected {
                wrong.push(format!(
                    "{family:?} {}: counted {counted:?}, should be {:?}",
                    case.name, case.reason
                ));
            } else if outcome.code != wanted(case) {
                wrong.push(format!("{family:?} {}: returned {}", case.name, outcome.code));
            } else if let Some(difference) = case.difference(&outcome.frame) {
                wrong.push(format!("{family:?} {}: {difference}", case.name));
            } else if let Some(difference) = case.flow_difference(outcome.left) {
                wrong.push(format!("{family:?} {}: {difference}", case.name));
            }
        }
        ensure!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
        Ok(())
    })
}

/// The programs' own packets pass `to_net` unseen and lose their mark there; other marks stay.
#[test]
fn a_mark_is_taken_off() -> Result<()> {
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        let cases = coil_cases::all();
        let marked = |case: &&coil_cases::Case| case.path == Path::ToNet && case.reason == Reason::Marked;
        let case = cases.iter().find(marked).context("a case of to_net")?;
        let ours = node.marked_packet("to_net", case.ingress, &case.frame, MARK | 0x4001)?;
        ensure!(ours.counted.is_empty() && (ours.code, ours.mark) == (-1, 0x4001), "{ours:?}");
        let theirs = node.marked_packet("to_net", case.ingress, &case.frame, 0x4001)?;
        ensure!(theirs.counted.len() == 1 && (theirs.code, theirs.mark) == (-1, 0x4001), "{theirs:?}");
        for case in cases.iter().filter(|case| case.reason == Reason::ToNode && case.given.is_empty()) {
            let outcome = node.case(case)?;
            ensure!(outcome.mark == MARK, "{}: {outcome:?}", case.name);
        }
        Ok(())
    })
}
