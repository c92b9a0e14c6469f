//! Lab clusters: what a user of Coil sees, with real programs and real packets.
//!
//! Each test has a lab of its own, and several run side by side. They need root, and the programs
//! that `cargo xtask test` builds first.
//!
//! - `demo`: the demo itself, in each family and with the kernel's datapath.
//! - `addresses`: pools, pods and blocks through kubectl.
//! - `certificates`: webhook certificates are changed under load.
//! - `draining`: gateways that go while they carry flows.
//! - `e2e`: the end-to-end tests for any cluster.
//! - `ipam`: blocks and pools as Coil v2's own end-to-end tests see them, in each family.
//! - `edge`: in whose name packets come to the world; clients without a gateway.
//! - `egress`: Egresses as their users change them; every kind of packet.
//! - `forgers`: FOU from those who have no business to send it.
//! - `gateways`: gateways that die, that are clients themselves, and whose clients send them everything.
//! - `kernel`: egress by the kernel alone.
//! - `families`: Egresses of clusters with one address family.
//! - `failures`: pods that cannot have a network, and how they recover.
//! - `mtu`: Egresses on wires of every size.
//! - `refusals`: what kubectl says of pools and Egresses that cannot be right.
//! - `roles`: each permission of the shipped roles is needed.
//! - `restart`: coild killed while packets flow.
//! - `routing`: routed addresses, the path's MTU, BIRD.
//! - `unknown`: an Egress that coild cannot understand.
//! - `upgrade`: from another version, under traffic.
//! - `lifecycle`: labs end, however they end, and leave nothing.

mod addresses;
mod certificates;
mod common;
mod demo;
mod draining;
mod e2e;
mod edge;
mod egress;
mod failures;
mod families;
mod forgers;
mod gateways;
mod ipam;
mod kernel;
mod lifecycle;
mod mtu;
mod refusals;
mod restart;
mod roles;
mod routing;
mod unknown;
mod upgrade;
