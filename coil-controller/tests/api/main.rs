//! Both controllers and the leader election against an API server in this process.

#![expect(clippy::unwrap_used, reason = "a test: what fails is a failure")]

mod admission;
mod egress;
mod ipam;
mod lease;
mod rotation;
mod support;
mod tls;
mod webhook;
