//! Names, custom resources, CNI types and the plugin's gRPC protocol of Coil.
