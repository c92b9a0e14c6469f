//! Every case and every journey through `BPF_PROG_TEST_RUN`.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use coil_cases::world::{UPLINK, host_mac};
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
    code(if case.stays { Class::Next } else { case.reason.class() })
}

/// Whether a reply goes into the client's pod by its link, which takes the programs' own packets by their mark, or past it. None
/// for all other cases.
fn by_link(case: &coil_cases::Case) -> Option<bool> {
    (case.path == Path::FromNet && case.reason == Reason::ReplyToPod).then_some(case.queued)
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
            } else if by_link(case).is_some_and(|by_link| by_link != (outcome.mark == MARK)) {
                wrong.push(format!("{family:?} {}: marked {:x}", case.name, outcome.mark));
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

/// Fragments, and whole flows, one packet after the other on maps that stay.
#[test]
fn every_journey_in_the_kernel() -> Result<()> {
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        let journeys = coil_cases::journeys::all();
        let mut wrong = vec![];
        for journey in &journeys {
            let family = if journey.net.is_v4() { Family::V4 } else { Family::V6 };
            node.begin(&journey.net, &journey.given)?;
            let taken = journey.take(|step| {
                let outcome = node
                    .packet(step.path.name(), step.ingress, &step.frame)
                    .map_err(|error| format!("{error:#}"))?;
                let counted: Vec<_> = outcome.counted.iter().map(|c| (c.path, c.family, c.reason)).collect();
                if counted != [(step.path, family, step.reason)] {
                    Err(format!("counted {counted:?}, should be {:?}", step.reason))
                } else if outcome.code != wanted(step) {
                    Err(format!("returned {}", outcome.code))
                } else {
                    Ok(outcome.frame)
                }
            });
            wrong.extend(taken.err().map(|wrong| format!("{family:?} {wrong}")));
        }
        ensure!(wrong.is_empty(), "{} of {} journeys:\n{}", wrong.len(), journeys.len(), wrong.join("\n"));
        Ok(())
    })
}

/// What is remembered of an egress flow changes no byte of its next packet but the MAC addresses, which then are the
/// neighbour's and the link's.
#[test]
fn every_egress_case_again() -> Result<()> {
    let pins = Pins::new()?;
    Node::run(&pins, |node| {
        for neighbour in ["172.18.0.2", "172.18.0.254", "fd00:18::2", "fd00:18::fe"] {
            let command =
                format!("neigh replace {neighbour} lladdr 02:00:00:00:ff:09 dev link{UPLINK} nud permanent");
            let output = Command::new("ip").args(command.split(' ')).output().context("cannot run ip")?;
            ensure!(output.status.success(), "ip {command}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let macs = [&[2, 0, 0, 0, 0xff, 9][..], &host_mac(UPLINK)].concat();
        let (mut wrong, mut known) = (vec![], [0; 3]);
        let egress = [Reason::ToGateway, Reason::Out, Reason::ReplyToNode, Reason::ReplyToPod];
        for case in coil_cases::all() {
            if !egress.contains(&case.reason) || !matches!(case.path, Path::FromPod | Path::FromNet) {
                continue;
            }
            let first = node.case(&case)?;
            let second = node.packet(case.path.name(), case.ingress, &case.frame)?;
            let reasons: Vec<_> = second.counted.iter().map(|c| c.reason).collect();
            if reasons != [case.reason]
                || second.code != first.code
                || second.frame[12..] != first.frame[12..]
            {
                wrong.push(format!("{} (IPv4 {}): {first:?}, then {second:?}", case.name, case.net.is_v4()));
            }
            let place = egress.iter().position(|reason| *reason == case.reason).unwrap_or_default().min(2);
            known[place] += u32::from(second.frame[..12] == macs[..]);
        }
        ensure!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
        // A second that ends between the two packets makes the second one the first.
        ensure!(known[0] > 10 && known[1] > 20 && known[2] > 4, "by memory: {known:?}");
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
