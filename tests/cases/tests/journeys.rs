//! Every journey through the decisions, on the host.

use coil_cases::{
    World,
    host::{HostAddr, Node},
    journeys::{self, Journey},
};
use coil_packet::Reason;

/// Says what goes wrong first, if anything does, and counts the reasons.
fn take<A: HostAddr>(journey: &Journey, reasons: &mut Vec<Reason>) -> Option<String> {
    let mut node = Node::<A>::new(World::new(&journey.net), &journey.given);
    let taken = journey.take(|step| {
        let outcome = node.run(step.path, step.ingress, &step.frame, 0);
        reasons.push(outcome.reason);
        let right = outcome.reason == step.reason;
        let wrong = || format!("is {:?}, should be {:?}", outcome.reason, step.reason);
        if right { Ok(outcome.frame) } else { Err(wrong()) }
    });
    taken.err()
}

#[test]
fn every_journey_on_the_host() {
    let (mut wrong, mut reasons) = (vec![], vec![]);
    let journeys = journeys::all();
    for journey in &journeys {
        wrong.extend(if journey.net.is_v4() {
            take::<[u8; 4]>(journey, &mut reasons)
        } else {
            take::<[u8; 16]>(journey, &mut reasons)
        });
    }
    assert!(wrong.is_empty(), "{} of {} journeys:\n{}", wrong.len(), journeys.len(), wrong.join("\n"));
    let count = |reason| reasons.iter().filter(|r| **r == reason).count();
    let every = [
        (Reason::ToGateway, 200),
        (Reason::Out, 200),
        (Reason::ReplyToNode, 200),
        (Reason::ReplyToPod, 100),
        (Reason::Decapsulated, 200),
        (Reason::EgressFragment, 80),
        (Reason::FragmentEarly, 80),
        (Reason::EgressKind, 7),
        (Reason::NotFastKind, 7),
    ];
    for (reason, least) in every {
        assert!(count(reason) > least, "{} steps end as {reason:?}", count(reason));
    }
}
