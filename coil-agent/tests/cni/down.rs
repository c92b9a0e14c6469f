//! coild is down, and what the plugin does alone.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use crate::{
    cluster::{Cluster, Setup},
    runtime::{Attachment, Network, addresses, gc_env, pod_routes},
    topology::TestNs,
};

/// How long a step may take on a machine with other work.
const LIMIT: Duration = Duration::from_secs(20);

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
        let idle = Idle::open(&cluster).await;
        cluster.terminate();
        // It says so to those that are there once it takes no more plugins.
        tokio::time::timeout(LIMIT, idle.told_to_leave()).await.expect("it serves on");

        assert_eq!(waiting(&cluster), 0);
        let start = Instant::now();
        let env = a.env();
        let socket = network.clone();
        let del = std::thread::spawn(move || socket.call("DEL", &env));
        while waiting(&cluster) == 0 {
            assert!(!del.is_finished(), "it did not wait: {:?}", del.join());
            assert!(start.elapsed() < LIMIT, "the plugin does not connect");
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

/// Connections to coild's socket that it has not accepted.
fn waiting(cluster: &Cluster) -> usize {
    let socket = cluster.socket().display().to_string();
    let output = Command::new("ss").arg("-xlH").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains(&socket));
    // Netid, state, and how many wait.
    let count = line.and_then(|line| line.split_whitespace().nth(2));
    let count = count.unwrap_or_else(|| panic!("{socket} is not there: {output:?}"));
    count.parse().unwrap()
}

/// Types of HTTP/2 frames (RFC 9113, section 6).
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

/// A connection over which nothing is asked, as far as HTTP/2 must be spoken for that.
struct Idle(UnixStream);

impl Idle {
    /// When the server has spoken, too: of what it has only accepted it takes no leave.
    async fn open(cluster: &Cluster) -> Self {
        let mut stream = UnixStream::connect(cluster.socket()).await.unwrap();
        let no_settings = [0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
        stream.write_all(&[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &no_settings].concat()).await.unwrap();
        let mut this = Self(stream);
        assert_eq!(this.frame().await, SETTINGS);
        this
    }

    /// The type of the next frame.
    async fn frame(&mut self) -> u8 {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.unwrap();
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        self.0.read_exact(&mut vec![0; usize::try_from(len).unwrap()]).await.unwrap();
        head[3]
    }

    /// Waits for that, and leaves.
    async fn told_to_leave(mut self) {
        while self.frame().await != GOAWAY {}
    }
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
