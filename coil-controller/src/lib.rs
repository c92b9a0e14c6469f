//! coil-ipam-controller and coil-egress-controller.
