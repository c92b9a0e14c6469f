//! Both controllers and the leader election against an API server: the embedded one, and once
//! more a real one where it is.

#![expect(clippy::unwrap_used, reason = "a test: what fails is a failure")]

mod admission;
mod egress;
mod ipam;
mod lease;
mod rotation;
mod support;
mod tls;
mod webhook;

#[test]
fn again_on_a_real_server() {
    const WHY: &str = "its webhook's Service leads to loopback, which a real server refuses; the lab has it";
    coil_apitest::again_on_a_real_server_except(&[
        ("admission::webhooks_alone_refuse_as_much", WHY),
        ("admission::wrong_pools_are_refused_and_right_ones_get_the_finalizer", WHY),
        ("admission::wrong_egresses_are_refused_and_right_ones_get_their_container", WHY),
    ]);
}
