//! The kernel's part of pod networking, in real namespaces. Needs root.
#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it should be")]

mod closed;
mod export;
mod incoming;
mod names;
mod node;
mod peers;
mod pods;
mod senders;
mod topology;
mod tracked;
