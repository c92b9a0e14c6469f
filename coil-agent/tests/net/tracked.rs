//! What a gateway by the kernel counts as flows in use: neither its own connections nor what is over.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use coil_agent::egress::kernel::{
    nft,
    tracked::{Tracked, tracked},
};

use crate::topology::TestNs;

const PATIENCE: Duration = Duration::from_secs(10);

/// Client, gateway (towards the client and towards the world) and world, by family.
const ADDRESSES: [[&str; 4]; 2] = [
    ["10.64.0.1", "10.64.0.2", "198.51.100.2", "198.51.100.1"],
    ["fd64::1", "fd64::2", "2001:db8:9::2", "2001:db8:9::1"],
];

/// A gateway between its client and the world.
struct Place {
    client: TestNs,
    gateway: TestNs,
    world: TestNs,
}

impl Place {
    fn new() -> Self {
        let [client, gateway, world] = ["client", "gateway", "world"].map(TestNs::new);
        for (link, other) in [("clients", &client), ("eth0", &world)] {
            let name = other.path().file_name().unwrap().to_str().unwrap().to_owned();
            gateway.ip(&format!("link add {link} type veth peer name eth0 netns {name}"));
            gateway.ip(&format!("link set {link} up"));
            other.ip("link set eth0 up");
        }
        for (v6, [one, near, far, two]) in (0..).zip(ADDRESSES) {
            let (len, nodad, family) = if v6 == 1 { (64, "nodad", "-6") } else { (24, "", "-4") };
            client.ip(&format!("addr add {one}/{len} dev eth0 {nodad}"));
            gateway.ip(&format!("addr add {near}/{len} dev clients {nodad}"));
            gateway.ip(&format!("addr add {far}/{len} dev eth0 {nodad}"));
            world.ip(&format!("addr add {two}/{len} dev eth0 {nodad}"));
            client.ip(&format!("{family} route add default via {near}"));
        }
        let place = Self { client, gateway, world };
        let made = place.gateway.0.run(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
            let links = nft::Links::default();
            let made = |own: &str| nft::ensure(own.parse().unwrap(), "eth0", None, &links);
            ADDRESSES.iter().try_for_each(|[_, _, far, _]| made(far))
        });
        made.unwrap().unwrap();
        place
    }

    fn tracked(&self) -> Tracked {
        self.gateway.0.run(tracked).unwrap()
    }

    /// Waits for so many flows in use.
    fn wait_for(&self, flows: u64) -> Tracked {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = self.tracked();
            if now.in_use == flows || Instant::now() > end {
                assert_eq!(now.in_use, flows, "{now:?}");
                return now;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn flows_in_use_are_those_of_clients_that_are_not_over() {
    let place = Place::new();
    assert_eq!(place.tracked().in_use, 0);
    let listen = |address: IpAddr| {
        let bind = || TcpListener::bind(SocketAddr::new(address, 0));
        place.world.0.run(bind).unwrap().unwrap()
    };
    let connect = |from: &TestNs, listener: &TcpListener| {
        let to = listener.local_addr().unwrap();
        let ours = from.0.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap();
        (ours, listener.accept().unwrap())
    };
    let mut expected = 0;
    for [.., two] in ADDRESSES {
        let world: IpAddr = two.parse().unwrap();
        let listener = listen(world);
        // The pod's own: of no client.
        let own = connect(&place.gateway, &listener);
        let now = place.wait_for(expected);
        assert!(now.entries > expected && now.limit > 0, "{now:?}");
        let (ours, (theirs, from)) = connect(&place.client, &listener);
        assert!(ADDRESSES.iter().any(|[_, _, far, _]| from.ip() == far.parse::<IpAddr>().unwrap()), "{from}");
        place.wait_for(expected + 1);
        let datagram = || {
            let socket = UdpSocket::bind(SocketAddr::new(any_like(world), 0))?;
            socket.send_to(b"query", SocketAddr::new(world, 53))
        };
        place.client.0.run(datagram).unwrap().unwrap();
        place.wait_for(expected + 2);
        // What is over stays in the table for two minutes.
        drop((ours, theirs));
        expected += 1;
        let now = place.wait_for(expected);
        assert!(now.entries >= expected + 2, "{now:?}");
        drop(own);
    }
}

/// Any address of the same family.
fn any_like(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() }
}
