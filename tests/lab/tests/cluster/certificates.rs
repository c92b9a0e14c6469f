//! Webhook certificates change while pools are made: nothing is refused for it, and nobody starts anew.

use std::time::Duration;

use anyhow::{Context as _, Result};
use coil_lab::{
    Lab,
    config::{Family, Options},
};

use crate::common::{LIMIT, check, end, get, name, program};

/// How long a new authority is told to API servers before it is used, and some more.
const SETTLED: Duration = Duration::from_secs(60);
/// The end of the served certificate.
const METRIC: &str = "coil_webhook_certificate_expiration_timestamp_seconds";

#[test]
fn rotation_with_ipv4() -> Result<()> {
    rotation("certs-v4", Family::V4)
}

#[test]
fn rotation_with_ipv6() -> Result<()> {
    rotation("certs-v6", Family::V6)
}

#[test]
fn rotation_with_both_families() -> Result<()> {
    rotation("certs-dual", Family::Dual)
}

fn rotation(test: &str, family: Family) -> Result<()> {
    let lab = Lab::start(program(), Options { family, nodes: 1, ..Options::named(&name(test)) })?;
    for (part, port, object) in
        [("ipam", 9386, "addresspool default"), ("egress", 9396, "egress kept -n default")]
    {
        if part == "egress" {
            lab.apply(EGRESS)?;
        }
        let pid = lab.program_pid("control", &format!("coil-{part}-controller"))?;
        let (before, trusted) = (expiration(&lab, port)?, bundle(&lab, part)?);
        lab.kubectl(&format!("delete secret -n kube-system coilv2-{part}-webhook-server-cert"))?.success()?;
        let mut n = 0;
        lab.wait_for("the new certificate", SETTLED, |lab| {
            n += 1;
            // Judged by the webhook: what is changed is sent to it.
            lab.kubectl(&format!("label {object} --overwrite round=r{n}"))?.success()?;
            Ok(if expiration(lab, port)? == before {
                Err("the old one is served".to_owned())
            } else {
                Ok(())
            })
        })?;
        lab.kubectl(&format!("label {object} --overwrite round=last"))?.success()?;
        let both = bundle(&lab, part)?;
        check(both.len() > trusted.len(), || "the old authority is not trusted any more".into())?;
        let secret = get(&lab, &format!("secret -n kube-system coilv2-{part}-webhook-server-cert"))?;
        check(secret["data"]["ca.crt"] == both.as_str(), || secret.to_string())?;
        let now = lab.program_pid("control", &format!("coil-{part}-controller"))?;
        check(pid == now, || format!("coil-{part}-controller was started anew"))?;
    }
    // Somebody writes something else into a configuration.
    let of = "validatingwebhookconfiguration coilv2-validating-ipam-webhook-configuration";
    let trusted = bundle(&lab, "ipam")?;
    let patch = r#"[{"op":"remove","path":"/webhooks/0/clientConfig/caBundle"}]"#;
    let words: Vec<&str> =
        ["patch"].into_iter().chain(of.split(' ')).chain(["--type=json", "-p", patch]).collect();
    lab.kubectl_with(&words, "")?.success()?;
    lab.wait_for("the authority is back", LIMIT, |lab| {
        Ok(match bundle(lab, "ipam") {
            Ok(found) if found == trusted => Ok(()),
            other => Err(format!("{other:?}")),
        })
    })?;
    end(lab)
}

const EGRESS: &str = "---
apiVersion: coil.cybozu.com/v2
kind: Egress
metadata: {name: kept, namespace: default}
spec: {destinations: [192.0.2.0/24, '2001:db8::/64']}
";

/// What API servers trust.
fn bundle(lab: &Lab, part: &str) -> Result<String> {
    let of = format!("validatingwebhookconfiguration coilv2-validating-{part}-webhook-configuration");
    let configuration = get(lab, &of)?;
    let bundle = configuration["webhooks"][0]["clientConfig"]["caBundle"].as_str().map(str::to_owned);
    bundle.with_context(|| format!("{of} trusts nobody"))
}

fn expiration(lab: &Lab, port: u16) -> Result<String> {
    let words = format!("coil-lab tool http-get http://127.0.0.1:{port}/metrics");
    let text = lab.node("control", &words)?.success()?;
    let line = text.lines().find_map(|line| line.strip_prefix(METRIC)).map(|v| v.trim().to_owned());
    line.with_context(|| format!("{METRIC} is not among the metrics of port {port}"))
}
