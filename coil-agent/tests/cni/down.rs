//! coild is down, and what the plugin does alone.

use std::time::{Duration, Instant};

use serde_json::json;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use crate::{
    cluster::{Cluster, Setup},
    runtime::{Attachment, Network, addresses, gc_env, pod_routes},
    topology::TestNs,
};

#[test]
fn del_removes_the_pod_and_no_address_is_lost_or_given_twice() {
    Cluster::run(async |mut cluster| {
        let network = Network::of(&cluster, "1.1.0");
        let names = ["a", "b", "c", "d"];
        let namespaces = names.map(TestNs::new);
        for name in names {
            cluster.objects.pod(name, json!({})).await;
        }
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| Attachment::new(names[i], &namespaces[i]));
        let added = network.add(&a);
        let stays = network.add(&b);
        cluster.stop();

        network.call("ADD", &c.env()).error(11, &["coild.sock"]);
        network.check(&a, &added).error(11, &["coild.sock"]);
        network.gc(&[&a, &b]).error(11, &["coild.sock"]);
        for _ in 0..2 {
            network.del(&a, &added).done();
        }
        assert!(!a.ns.ip("-o link").contains("eth0"), "it is gone at once");
        let routes = pod_routes(&cluster);
        assert!(
            !routes.contains(&addresses(&added)[0]) && routes.contains(&addresses(&stays)[0]),
            "{routes}"
        );
        assert!(b.ns.ip("-o link").contains("eth0"), "another pod's link is left alone");
        // A link of the same name in a namespace that is not the attachment's.
        c.ns.ip("link add eth0 type bridge");
        network.call("DEL", &c.env()).done();
        assert!(c.ns.ip("-o link").contains("eth0"), "what is not Coil's is not removed");
        c.ns.ip("link del eth0");

        cluster.go_on().await;
        network.check(&b, &stays).done();
        // All addresses but b's are free: the pool has four.
        let mut all = addresses(&stays);
        for pod in [&a, &c, &d] {
            all.extend(addresses(&network.add(pod)));
        }
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 8);
    });
}

/// While requests still run in a coild that ends, the plugin does not take its pods away behind its back.
#[test]
fn del_waits_for_a_coild_that_is_about_to_end() {
    Cluster::run(async |mut cluster| {
        let network = Network::of(&cluster, "1.1.0");
        cluster.objects.pod("a", json!({})).await;
        let ns = TestNs::new("a");
        let a = Attachment::new("a", &ns);
        network.add(&a);
        // A request that lasts until it is let go.
        let (questions, asked) = tokio::sync::mpsc::channel(1);
        let stream = tokio_stream::wrappers::ReceiverStream::new(asked);
        let mut reflection = ServerReflectionClient::new(cluster.channel().await);
        let answers = reflection.server_reflection_info(stream).await.unwrap();
        cluster.terminate();
        // Until it takes no more plugins.
        let start = Instant::now();
        let serves =
            async || match tokio::time::timeout(Duration::from_secs(2), cluster.check("a", &ns)).await {
                Ok(answer) => answer.map_or_else(|e| e.code != 0, |()| true),
                Err(_) => false,
            };
        while serves().await {
            assert!(start.elapsed() < Duration::from_secs(20), "it serves on");
        }

        let before = connections(&cluster);
        let env = a.env();
        let socket = network.clone();
        let del = std::thread::spawn(move || socket.call("DEL", &env));
        while connections(&cluster) == before {
            assert!(!del.is_finished(), "it did not wait: {:?}", del.join());
            assert!(start.elapsed() < Duration::from_secs(20), "the plugin does not connect");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(ns.ip("-o link").contains("eth0"));
        drop((questions, answers, reflection));
        cluster.until_ended().await;
        del.join().unwrap().error(11, &["coild"]);
        assert!(ns.ip("-o link").contains("eth0"), "whoever asks again finds a coild, or none at all");
        network.call("DEL", &a.env()).done();
        assert!(!ns.ip("-o link").contains("eth0"));
    });
}

/// Ends of connections to coild's socket, and the socket itself.
fn connections(cluster: &Cluster) -> usize {
    // Of this thread: the process is in another namespace.
    let all = std::fs::read_to_string("/proc/thread-self/net/unix").unwrap();
    let socket = cluster.socket().display().to_string();
    all.lines().filter(|line| line.contains(&socket)).count()
}

#[test]
fn a_pod_whose_link_is_gone_is_let_go() {
    Cluster::run_with(Setup { interval: "1s", ..Setup::default() }, async |cluster| {
        let network = Network::of(&cluster, "1.1.0");
        let names = ["a", "b", "c", "d", "e"];
        let namespaces = names.map(TestNs::new);
        for name in names {
            cluster.objects.pod(name, json!({})).await;
        }
        let pods: Vec<Attachment<'_>> =
            names.iter().zip(&namespaces).map(|(name, ns)| Attachment::new(name, ns)).collect();
        for pod in &pods[..4] {
            network.add(pod);
        }
        network.call("ADD", &pods[4].env()).error(999, &["out of blocks"]);
        // As when a namespace is removed and nobody calls DEL.
        pods[0].ns.ip("link del eth0");
        let start = Instant::now();
        while !network.call("ADD", &pods[4].env()).ok {
            assert!(start.elapsed() < Duration::from_secs(30), "its addresses are not free");
        }
        assert!(network.call("STATUS", &gc_env()).ok);
    });
}
