//! Packet cases and an independent packet serialiser.
