//! The gRPC protocol between the `coil` plugin and coild (`proto/cni.proto`).

#![expect(missing_docs, reason = "generated; documented in the proto file")]
#![expect(clippy::allow_attributes, reason = "generated")]
#![expect(clippy::allow_attributes_without_reason, reason = "generated")]

tonic::include_proto!("pkg.cnirpc");

/// The protocol's file descriptors, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cni_descriptor.bin"));

pub mod status;
