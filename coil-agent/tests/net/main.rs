//! The kernel's part of pod networking, in real namespaces. Needs root.

mod export;
mod pods;
mod topology;
