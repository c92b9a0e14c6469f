//! Routing rules of a pod.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::plan::{RULES, Rule};
use crate::net::{Rtnl, RtnlError, rtnl::Mode};

/// Makes the rules between priorities 1800 and 2100 exactly the wanted ones.
///
/// # Errors
/// When the kernel refuses; the message names the rule.
pub async fn sync(rtnl: &Rtnl, wanted: &BTreeSet<Rule>) -> Result<(), RtnlError> {
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
    let mut rule = Rule { priority: 0, to: None, v6, iif: None, table: u32::from(message.header.table) };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
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
    message.attributes.extend(rule.iif.clone().map(RuleAttribute::Iifname));
    message
}
