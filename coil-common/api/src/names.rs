//! Names and defaults that users of Coil v2 rely on.

/// API group of the custom resources.
pub const GROUP: &str = "coil.cybozu.com";
/// API version of the custom resources.
pub const VERSION: &str = "v2";
/// Finalizer of pools and blocks.
pub const FINALIZER: &str = "coil.cybozu.com";

/// Namespace annotation that picks the AddressPool of its pods.
pub const ANN_POOL: &str = "coil.cybozu.com/pool";
/// Prefix of the pod annotations that make a pod a client: `PREFIX` + namespace: names.
pub const ANN_EGRESS_PREFIX: &str = "egress.coil.cybozu.com/";
/// The pool of namespaces without [`ANN_POOL`].
pub const DEFAULT_POOL: &str = "default";

/// AddressBlock label: its pool.
pub const LABEL_POOL: &str = "coil.cybozu.com/pool";
/// AddressBlock label: the node that owns it.
pub const LABEL_NODE: &str = "coil.cybozu.com/node";
/// AddressBlock label: UID of the BlockRequest that it answers.
pub const LABEL_REQUEST: &str = "coil.cybozu.com/request";
/// AddressBlock label: `"true"` when all its addresses are taken by somebody else.
pub const LABEL_RESERVED: &str = "coil.cybozu.com/reserved";

/// Well-known label with the application's name; [`APP_NAME`] here.
pub const LABEL_APP_NAME: &str = "app.kubernetes.io/name";
/// Well-known label with the instance; the Egress's name on its objects.
pub const LABEL_APP_INSTANCE: &str = "app.kubernetes.io/instance";
/// Well-known label with the component; [`COMPONENT_EGRESS`] on an Egress's objects.
pub const LABEL_APP_COMPONENT: &str = "app.kubernetes.io/component";
/// Value of [`LABEL_APP_NAME`].
pub const APP_NAME: &str = "coil";
/// Value of [`LABEL_APP_COMPONENT`] on an Egress's objects.
pub const COMPONENT_EGRESS: &str = "egress";
/// The container of a gateway pod that runs coil-egress.
pub const EGRESS_CONTAINER: &str = "egress";
/// TCP port of a gateway pod that answers its probes.
pub const GATEWAY_HEALTH_PORT: u16 = 8081;
/// ServiceAccount of gateway pods, and the ClusterRoleBinding over all Egress namespaces.
pub const EGRESS_SERVICE_ACCOUNT: &str = "coil-egress";

/// Key in `CNI_ARGS`: the pod's name.
pub const ARG_POD_NAME: &str = "K8S_POD_NAME";
/// Key in `CNI_ARGS`: the pod's namespace.
pub const ARG_POD_NAMESPACE: &str = "K8S_POD_NAMESPACE";
/// Key in `CNI_ARGS` that newer runtimes give: the pod's UID.
pub const ARG_POD_UID: &str = "K8S_POD_UID";
/// Key that the plugin adds to the arguments for coild: `true` when plugins ran before it.
pub const ARG_IS_CHAINED: &str = "IS_CHAINED";

/// Environment of coild and coil-router: the node's name.
pub const ENV_NODE_NAME: &str = "COIL_NODE_NAME";
/// Environment of coil-egress: `status.podIPs`, comma separated.
pub const ENV_POD_ADDRESSES: &str = "COIL_POD_ADDRESSES";
/// Environment of coil-egress and the egress controller: the pod's namespace.
pub const ENV_POD_NAMESPACE: &str = "COIL_POD_NAMESPACE";
/// Environment of the egress controller: the pod's name.
pub const ENV_POD_NAME: &str = "COIL_POD_NAME";
/// Environment of coil-egress: the Egress it serves.
pub const ENV_EGRESS_NAME: &str = "COIL_EGRESS_NAME";

/// UDP port of FOU on the wire.
pub const DEFAULT_EGRESS_PORT: u16 = 5555;
/// Where coild serves the plugin.
pub const DEFAULT_SOCKET: &str = "/run/coild.sock";
/// Routing table with a route to each pod of the node.
pub const DEFAULT_POD_TABLE: u32 = 116;
/// Priority of the rules that look up [`DEFAULT_POD_TABLE`].
pub const DEFAULT_POD_RULE_PRIORITY: u32 = 2000;
/// Routing table with the node's address blocks.
pub const DEFAULT_EXPORT_TABLE: u32 = 119;
/// Route protocol of coild's routes.
pub const DEFAULT_PROTOCOL: u8 = 30;
/// Route protocol of coil-router's routes.
pub const DEFAULT_ROUTER_PROTOCOL: u8 = 31;

/// How the alias of every link begins that Coil made, or took over from an earlier plugin.
const ALIAS_TAG: &str = "COIL";

/// Alias of a pod's host link: its pool (none when chained), container id (the pod's UID when chained) and
/// interface name.
#[must_use]
pub fn link_alias(pool: &str, container_id: &str, ifname: &str) -> String {
    format!("{ALIAS_TAG}:{pool}:{container_id}:{ifname}")
}

/// The parts of an alias that [`link_alias`] made; none when it is not one of Coil's.
#[must_use]
pub fn parse_link_alias(alias: &str) -> Option<(&str, &str, &str)> {
    let mut columns = alias.split(':');
    let parts = (columns.next()?, columns.next()?, columns.next()?, columns.next()?);
    let (ALIAS_TAG, pool, container_id, ifname) = parts else { return None };
    columns.next().is_none().then_some((pool, container_id, ifname))
}

/// Name of a node's request for a block of a pool.
#[must_use]
pub fn block_request_name(pool: &str, node: &str) -> String {
    format!("req-{pool}-{node}")
}

/// Name of a pool's block.
#[must_use]
pub fn block_name(pool: &str, index: u32) -> String {
    format!("{pool}-{index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases() {
        assert_eq!(link_alias("default", "0123abcd", "eth0"), "COIL:default:0123abcd:eth0");
        for (pool, id) in [("default", "0123abcd"), ("", "3c1c-4e")] {
            assert_eq!(parse_link_alias(&link_alias(pool, id, "eth0")), Some((pool, id, "eth0")));
        }
        for other in ["", "COIL", "COIL:a:b", "COIL:a:b:c:d", "CALI:a:b:c"] {
            assert_eq!(parse_link_alias(other), None, "{other}");
        }
    }
}
