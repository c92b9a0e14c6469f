//! What Coil's programs and kubectl count on in an API server, asked of the embedded one and,
//! where one is, of a real one: the same tests.

#![expect(clippy::unwrap_used, reason = "a test: what fails is a failure")]

mod admission;
mod cel;
mod chart;
mod from_v2;
mod kubectl;
mod lists;
mod manifests;
mod objects;
mod raw;
mod roles;

#[test]
fn again_on_a_real_server() {
    coil_apitest::again_on_a_real_server();
}
