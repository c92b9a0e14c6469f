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
    coil_apitest::again_on_a_real_server();
}
