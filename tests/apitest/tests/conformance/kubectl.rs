//! What kubectl shows.

use std::process::Command;

use coil_apitest::Cluster;
use serde_json::json;

use crate::raw;

/// Runs kubectl against the cluster; it has to succeed.
fn kubectl(cluster: &Cluster, words: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, cluster.server.kubeconfig("admin").unwrap()).unwrap();
    let mut command = Command::new("kubectl");
    // What kubectl remembers of one server is not true of another.
    command.args(words.split_whitespace()).arg("--cache-dir").arg(dir.path());
    let done = command.env("KUBECONFIG", &kubeconfig).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "kubectl {words}: {out}{err}");
    out.into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn get_shows_the_columns() {
    let cluster = Cluster::start().await;
    let labels = json!({"coil.cybozu.com/pool": "p", "coil.cybozu.com/node": "n"});
    let block = json!({"apiVersion": "coil.cybozu.com/v2", "kind": "AddressBlock", "index": 0,
        "metadata": {"name": "p-0", "labels": labels}, "ipv4": "10.0.0.0/30"});
    raw::post(&cluster, "/apis/coil.cybozu.com/v2/addressblocks", &block).await.ok();
    let shown = kubectl(&cluster, "get addressblocks");
    let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "NODE", "POOL", "IPV4", "IPV6"]);
    assert_eq!(lines[1], ["p-0", "n", "p", "10.0.0.0/30"], "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_shows_the_schema() {
    let cluster = Cluster::start().await;
    // What is explained comes from a document that a real server makes a moment after the definition.
    coil_apitest::eventually("the document has the pool", async || {
        let document = raw::get(&cluster, "/openapi/v3/apis/coil.cybozu.com/v2").await;
        document.body.to_string().contains("com.cybozu.coil.v2.AddressPool")
    })
    .await;
    let shown = kubectl(&cluster, "explain addresspool.spec");
    assert!(
        shown.starts_with(
            "GROUP:      coil.cybozu.com\nKIND:       AddressPool\nVERSION:    v2\n\nFIELD: spec <Object>\n"
        ),
        "{shown}"
    );
    assert!(shown.contains("\nFIELDS:\n  blockSizeBits\t<integer>\n"), "{shown}");
    assert!(shown.contains("  subnets\t<[]Object> -required-\n"), "{shown}");
    let whole = kubectl(&cluster, "explain addresspool");
    for part in
        ["  apiVersion\t<string>\n", "  kind\t<string>\n", "  metadata\t<ObjectMeta>\n", "  spec\t<Object>"]
    {
        assert!(whole.contains(part), "{part:?} is not in {whole}");
    }
    assert!(whole.contains("APIVersion defines the versioned schema"), "{whole}");
}
