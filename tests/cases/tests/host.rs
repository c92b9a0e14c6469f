//! Every case through the decisions, on the host.

#[test]
fn every_case_on_the_host() {
    let cases = coil_cases::all();
    let mut wrong = vec![];
    for case in &cases {
        let outcome = coil_cases::host::run(case);
        let family = if case.net.is_v4() { "IPv4" } else { "IPv6" };
        if outcome.reason != case.reason {
            wrong.push(format!(
                "{family} {}: is {:?}, should be {:?}",
                case.name, outcome.reason, case.reason
            ));
        } else if let Some(difference) = case.difference(&outcome.frame) {
            wrong.push(format!("{family} {}: {difference}", case.name));
        } else if outcome.queued != case.queued {
            wrong.push(format!("{family} {}: by a link's queue: {}", case.name, outcome.queued));
        } else if let Some(difference) = case.flow_difference(outcome.left) {
            wrong.push(format!("{family} {}: {difference}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

/// Names tell cases apart in messages.
#[test]
fn names_are_unique() {
    let cases = coil_cases::all();
    for (i, case) in cases.iter().enumerate() {
        let twin =
            cases[..i].iter().find(|c| c.name == case.name && c.net == case.net && c.path == case.path);
        assert!(twin.is_none(), "two cases are named {:?}", case.name);
    }
}
