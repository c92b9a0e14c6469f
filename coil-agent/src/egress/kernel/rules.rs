//! Routing rules of a pod.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily, IpProtocol, RouteNetlinkMessage,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{
    incoming::MARK,
    plan::{RULES, Rule},
};
use crate::net::{Rtnl, RtnlError, rtnl::Mode};

/// The rules between priorities 1800 and 2100.
///
/// # Errors
/// When the kernel cannot be asked.
pub(super) async fn list(rtnl: &Rtnl) -> Result<BTreeSet<Rule>, RtnlError> {
    let mut found = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut filter = RuleMessage::default();
        filter.header.family = family;
        let messages = rtnl.dump(RouteNetlinkMessage::GetRule(filter), "the routing rules").await?;
        found.extend(messages.iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRule(rule) if rule.header.family == family => parse(rule),
            _ => None,
        }));
    }
    Ok(found)
}

/// Makes the rules between priorities 1800 and 2100 exactly the wanted ones.
///
/// # Errors
/// When the kernel refuses; the message names the rule.
pub async fn sync(rtnl: &Rtnl, wanted: &BTreeSet<Rule>) -> Result<(), RtnlError> {
    let found = list(rtnl).await?;
    // What keeps traffic in the cluster is there before what lets it out, and goes after it.
    for rule in wanted.difference(&found) {
        let doing = || format!("add the routing rule {} to table {}", rule.priority, rule.table);
        rtnl.change(RouteNetlinkMessage::NewRule(write(rule)), Mode::Create, doing).await?;
    }
    for rule in found.difference(wanted).collect::<Vec<_>>().into_iter().rev() {
        let doing = || format!("remove the routing rule {} to table {}", rule.priority, rule.table);
        rtnl.change(RouteNetlinkMessage::DelRule(write(rule)), Mode::Change, doing).await?;
    }
    Ok(())
}

fn parse(message: &RuleMessage) -> Option<Rule> {
    let v6 = message.header.family == AddressFamily::Inet6;
    let mut rule = Rule::new(v6, 0, u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::IpProtocol(protocol) => rule.icmp = *protocol == icmp(v6),
            RuleAttribute::FwMark(mark) => rule.incoming = *mark == MARK,
            RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
            RuleAttribute::Destination(to) => rule.to = IpNet::new(*to, message.header.dst_len).ok(),
            _ => {}
        }
    }
    RULES.contains(&rule.priority).then_some(rule)
}

fn write(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = if rule.v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(rule.table).unwrap_or_default();
    message.attributes = vec![RuleAttribute::Table(rule.table), RuleAttribute::Priority(rule.priority)];
    if let Some(to) = rule.to {
        message.header.dst_len = to.prefix_len();
        let network: IpAddr = to.network();
        message.attributes.push(RuleAttribute::Destination(network));
    }
    if rule.icmp {
        message.attributes.push(RuleAttribute::IpProtocol(icmp(rule.v6)));
    }
    if rule.incoming {
        message.attributes.extend([RuleAttribute::FwMark(MARK), RuleAttribute::FwMask(MARK)]);
    }
    message.attributes.extend(rule.iif.clone().map(RuleAttribute::Iifname));
    message
}

const fn icmp(v6: bool) -> IpProtocol {
    // The crate has no name for ICMPv6.
    if v6 { IpProtocol::Other(nix::libc::IPPROTO_ICMPV6) } else { IpProtocol::Icmp }
}

#[cfg(test)]
mod tests {
    use coil_netns::NetNs;

    use super::*;

    #[test]
    fn rules_are_those_that_are_wanted() {
        let path = std::env::temp_dir().join(format!("coil-rules-{}", std::process::id()));
        let ns = NetNs::create(&path).expect("a network namespace, which needs root");
        let listed = |family: &str| {
            let output = ns.run(|| std::process::Command::new("ip").args([family, "rule"]).output());
            let output = output.expect("the namespace").expect("ip runs");
            // The namespace has no eth0, which ip may say or not.
            String::from_utf8_lossy(&output.stdout).replace(" [detached]", "")
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let rule = |v6, to: Option<&str>, iif: Option<&str>, icmp| Rule {
            to: to.map(|to| to.parse().unwrap()),
            iif: iif.map(str::to_owned),
            icmp,
            ..Rule::new(v6, 2000, 118)
        };
        let mut wanted: BTreeSet<Rule> = [false, true]
            .into_iter()
            .flat_map(|v6| [rule(v6, None, Some("eth0"), false), rule(v6, None, Some("lo"), true)])
            .collect();
        wanted.insert(rule(false, Some("10.0.0.0/8"), None, false));
        wanted.extend([false, true].map(|v6| Rule { incoming: true, ..Rule::new(v6, 1850, 120) }));
        let (one, two, none) = runtime.block_on(async {
            let rtnl = Rtnl::open_in(&ns).unwrap().unwrap();
            sync(&rtnl, &wanted).await.unwrap();
            let one = [listed("-4"), listed("-6")];
            sync(&rtnl, &wanted).await.unwrap();
            let two = [listed("-4"), listed("-6")];
            sync(&rtnl, &BTreeSet::new()).await.unwrap();
            (one, two, [listed("-4"), listed("-6")])
        });
        NetNs::remove(&path).unwrap();
        for (family, text) in ["icmp", "ipv6-icmp"].into_iter().zip(&one) {
            assert!(text.contains("from all iif eth0 lookup 118"), "{text}");
            assert!(text.contains("from all fwmark 0x2000/0x2000 lookup 120"), "{text}");
            assert!(text.contains(&format!("from all iif lo ipproto {family} lookup 118")), "{text}");
        }
        assert!(one[0].contains("from all to 10.0.0.0/8 lookup 118"), "{}", one[0]);
        assert_eq!(one, two, "doing it twice changes nothing");
        assert!(none.iter().all(|text| !text.contains("118")), "{none:?}");
    }
}
