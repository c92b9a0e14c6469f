//! coil-egress's program against a stand-in of coild's socket.
//!
//! ```text
//!   test ──HTTP──▶ gateway::run ──abstract socket──▶ stand-in
//! ```

#![expect(clippy::unwrap_used, reason = "a test: what fails is a failure")]

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use coil_agent::gateway::{Endpoints, run, settings::Settings};
use coil_api::gateway::{Busiest, FlowCount, GatewayClient, GatewaySeen, GatewayStatus, Translated};
use tokio::sync::oneshot;

const LIMIT: Duration = Duration::from_secs(20);

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

async fn wait_for(address: SocketAddr, path: &'static str, parts: &[&str]) {
    let start = Instant::now();
    loop {
        let answer = tokio::task::spawn_blocking(move || get(address, path)).await.unwrap();
        if parts.iter().all(|p| answer.contains(p)) {
            return;
        }
        assert!(start.elapsed() < LIMIT, "{path}: no {parts:?} in {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn client(name: &str, address: &str) -> GatewayClient {
    let address = address.parse().unwrap();
    GatewayClient { namespace: "apps".into(), name: name.into(), address, interface: "fou4_x".into() }
}

/// Answers each connection with the status as it is then.
fn stand_in(socket: &str, status: Arc<Mutex<GatewayStatus>>) {
    let listener = UnixListener::bind_addr(&UnixAddr::from_abstract_name(socket).unwrap()).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let text = serde_json::to_vec(&*status.lock().unwrap()).unwrap();
            // A client that went away is its own business.
            let _ = stream.write_all(&text);
        }
    });
}

#[tokio::test]
async fn nobody_waits_for_a_coild_that_hangs() {
    let socket = format!("coil-gateway-hangs-{}", std::process::id());
    let listener = UnixListener::bind_addr(&UnixAddr::from_abstract_name(&socket).unwrap()).unwrap();
    let (asked, was_asked) = std::sync::mpsc::channel();
    // It takes every question, and answers none, until all is looked at.
    let hanging = Arc::new(Mutex::new(Some(Vec::new())));
    let open = hanging.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if let Some(open) = open.lock().unwrap().as_mut() {
                open.push(stream);
            }
            let _ = asked.send(());
        }
    });
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (metrics, health) = (listen(), listen());
    let health_at = health.local_addr().unwrap();
    let settings = Settings {
        namespace: "internet".into(),
        egress: "nat".into(),
        pod: "nat-1".into(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let endpoints = Endpoints { metrics, health, socket, limit: LIMIT };
    let program = tokio::spawn(run(settings, endpoints, LIMIT, async {
        stopped.await.unwrap();
    }));
    tokio::task::spawn_blocking(move || was_asked.recv_timeout(LIMIT)).await.unwrap().unwrap();
    // Far less than the question takes, and room for a machine that is busy.
    let short = LIMIT / 2;
    let since = Instant::now();
    for path in ["/healthz", "/readyz"] {
        wait_for(health_at, path, &["HTTP/1.1"]).await;
    }
    assert!(since.elapsed() < short, "{:?} for two answers", since.elapsed());
    // Nor does its end.
    stop.send(()).unwrap();
    let since = Instant::now();
    tokio::time::timeout(LIMIT, program).await.expect("it ends").unwrap().unwrap();
    assert!(since.elapsed() < short, "{:?} until the end", since.elapsed());
    // The question that is under way ends, or this test would wait for it.
    hanging.lock().unwrap().take();
}

#[tokio::test]
async fn a_gateway_from_start_to_end() {
    let socket = format!("coil-gateway-test-{}", std::process::id());
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (metrics, health) = (listen(), listen());
    let (metrics_at, health_at) = (metrics.local_addr().unwrap(), health.local_addr().unwrap());
    let settings = Settings {
        namespace: "internet".into(),
        egress: "nat".into(),
        pod: "nat-1".into(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let endpoints = Endpoints { metrics, health, socket: socket.clone(), limit: coil_agent::gateway::LIMIT };
    let program = tokio::spawn(run(settings, endpoints, LIMIT, async {
        stopped.await.unwrap();
    }));

    wait_for(health_at, "/healthz", &["200 OK"]).await;
    wait_for(health_at, "/readyz", &["503", "coild does not serve this pod", &socket]).await;

    let status = Arc::new(Mutex::new(GatewayStatus {
        ready: false,
        reason: "clients are not all known yet".into(),
        namespace: "internet".into(),
        egress: "nat".into(),
        addresses: vec!["10.0.0.1".parse().unwrap()],
        flows: 0,
        seen: GatewaySeen {
            limit: 1000,
            tracked: None,
            clients: Some(vec![client("a", "10.64.0.1"), client("a", "fd64::1"), client("b", "10.64.0.2")]),
            translated: [(
                "ipv4".to_owned(),
                Translated { packets: 5, bytes: 300, invalid_packets: 1, invalid_bytes: 40 },
            )]
            .into(),
            forged: [("ipv6".to_owned(), 3)].into(),
            flows: vec![FlowCount { protocol: "tcp".into(), state: "established".into(), flows: 7 }],
            busiest: Some(Busiest { remote: "198.51.100.1:443/tcp".into(), ports: 6, of: 59973 }),
            failures: [("no-port".to_owned(), 2)].into(),
            lacks: "this kernel lacks FOU for IPv4".into(),
        },
    }));
    stand_in(&socket, status.clone());
    wait_for(health_at, "/readyz", &["503", "clients are not all known yet"]).await;

    {
        let mut status = status.lock().unwrap();
        status.ready = true;
        status.flows = 7;
    }
    wait_for(health_at, "/readyz", &["200 OK", "ok; protocols", "this kernel lacks FOU for IPv4"]).await;
    wait_for(
        metrics_at,
        "/metrics",
        &[
            "coil_egress_ready{egress=\"nat\",namespace=\"internet\",pod=\"nat-1\"} 1\n",
            "coil_egress_nf_conntrack_entries_count{egress=\"nat\",namespace=\"internet\",pod=\"nat-1\"} 7\n",
            "coil_egress_nf_conntrack_entries_limit{egress=\"nat\",namespace=\"internet\",pod=\"nat-1\"} 1000\n",
            "coil_egress_nftables_masqueraded_packets_total{egress=\"nat\",namespace=\"internet\",pod=\"nat-1\",protocol=\"ipv4\"} 5\n",
            "coil_egress_nftables_invalid_bytes_total{egress=\"nat\",namespace=\"internet\",pod=\"nat-1\",protocol=\"ipv4\"} 40\n",
            "coil_egress_forged_packets_total{egress=\"nat\",namespace=\"internet\",pod=\"nat-1\",protocol=\"ipv6\"} 3\n",
            "coil_egress_client_pod_count{egress=\"nat\",namespace=\"internet\"} 2\n",
            "coil_egress_client_pod_info{egress=\"nat\",egress_namespace=\"internet\",interface=\"fou4_x\",namespace=\"apps\",pod=\"a\",pod_ip=\"10.64.0.1\"} 1\n",
            "coil_egress_flows{egress=\"nat\",namespace=\"internet\",pod=\"nat-1\",protocol=\"tcp\",state=\"established\"} 7\n",
            "coil_egress_busiest_remote_ports{egress=\"nat\",namespace=\"internet\",pod=\"nat-1\",what=\"used\"} 6\n",
            "coil_egress_port_failures_total{egress=\"nat\",namespace=\"internet\",pod=\"nat-1\",reason=\"no-port\"} 2\n",
            "process_",
        ],
    )
    .await;

    // As many clients as a large cluster has, and fewer again: what is gone is not shown.
    const MANY: u32 = 50_000;
    let many =
        (0..MANY).map(|n| client(&format!("web-{n}"), &Ipv4Addr::from_bits(0x0a40_0000 + n).to_string()));
    status.lock().unwrap().seen.clients = Some(many.collect());
    let count =
        |of: u32| format!("coil_egress_client_pod_count{{egress=\"nat\",namespace=\"internet\"}} {of}\n");
    wait_for(metrics_at, "/metrics", &[&count(MANY), "pod=\"web-49999\",pod_ip=\"10.64.195.79\""]).await;
    wait_for(health_at, "/readyz", &["200 OK"]).await;
    {
        let seen = &mut status.lock().unwrap().seen;
        seen.clients = Some(vec![client("web-0", "10.64.0.0")]);
        seen.flows = vec![FlowCount { protocol: "udp".into(), state: "new".into(), flows: 1 }];
    }
    wait_for(metrics_at, "/metrics", &[&count(1), "state=\"new\"} 1\n"]).await;
    let text = tokio::task::spawn_blocking(move || get(metrics_at, "/metrics")).await.unwrap();
    assert_eq!(text.matches("coil_egress_client_pod_info{").count(), 1, "{text}");
    assert_eq!(text.matches("coil_egress_flows{").count(), 1, "{text}");

    // A kernel's connection tracking has more than flows, which nobody waits for.
    status.lock().unwrap().seen.tracked = Some(9);
    let tracked =
        "coil_egress_nf_conntrack_entries_count{egress=\"nat\",namespace=\"internet\",pod=\"nat-1\"} 9\n";
    wait_for(metrics_at, "/metrics", &[tracked]).await;

    stop.send(()).unwrap();
    wait_for(health_at, "/readyz", &["200 OK", "terminating, 7 flows"]).await;
    assert!(!program.is_finished());
    status.lock().unwrap().flows = 0;
    let ended = Instant::now();
    tokio::time::timeout(LIMIT, program).await.expect("ends with its last flow").unwrap().unwrap();
    assert!(ended.elapsed() < LIMIT / 2, "long before its time was up");
}
