//! A Coil cluster in network namespaces.
