//! What is read out of the plugin's request.

use std::path::PathBuf;

use coil_api::{
    cni::code,
    names::{ARG_POD_NAME, ARG_POD_NAMESPACE},
    rpc::CniArgs,
};

use super::Failure;
use crate::{ipam::AttachmentId, watch::index::ObjectKey};

/// Key in `CNI_ARGS` that newer runtimes give.
const ARG_POD_UID: &str = "K8S_POD_UID";

/// A request, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) owner: AttachmentId,
    pub(super) pod: ObjectKey,
    pub(super) uid: Option<String>,
    pub(super) netns: PathBuf,
}

/// The attachment alone: enough for DEL.
pub(super) fn owner(args: &CniArgs) -> Result<AttachmentId, Failure> {
    // Both become part of a link's alias, which has no way to write a colon.
    let plain = |value: &str| {
        !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic() && b != b':' && b != b'/')
    };
    for (name, value) in [("CNI_CONTAINERID", &args.container_id), ("CNI_IFNAME", &args.ifname)] {
        if !plain(value) {
            return Err(Failure::new(
                code::INVALID_ENVIRONMENT,
                format!("{name} {value:?} is not a plain name"),
            ));
        }
    }
    if args.ifname.len() > 15 {
        return Err(Failure::new(
            code::INVALID_ENVIRONMENT,
            format!("CNI_IFNAME {:?} is longer than 15 characters", args.ifname),
        ));
    }
    Ok(AttachmentId { container_id: args.container_id.clone(), ifname: args.ifname.clone() })
}

impl Request {
    pub(super) fn new(args: &CniArgs) -> Result<Self, Failure> {
        let owner = owner(args)?;
        let arg = |name: &str| args.args.get(name).filter(|value| !value.is_empty());
        let needed = |name: &str| {
            arg(name).ok_or_else(|| {
                Failure::new(
                    code::INVALID_ENVIRONMENT,
                    format!("CNI_ARGS has no {name}: is the runtime Kubernetes'?"),
                )
            })
        };
        if !args.ips.is_empty() || !args.interfaces.is_empty() {
            return Err(Failure::new(
                code::INVALID_NETWORK_CONFIG,
                "coil gives the pod its addresses, so it must be the first plugin in the chain: \
                 the configuration has a prevResult",
            ));
        }
        Ok(Self {
            owner,
            pod: ObjectKey::new(needed(ARG_POD_NAMESPACE)?, needed(ARG_POD_NAME)?),
            uid: arg(ARG_POD_UID).cloned(),
            netns: PathBuf::from(&args.netns),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> CniArgs {
        let pair = |(k, v): (&str, &str)| (k.to_owned(), v.to_owned());
        CniArgs {
            container_id: "0123".into(),
            netns: "/run/netns/a".into(),
            ifname: "eth0".into(),
            args: [("K8S_POD_NAME", "p"), ("K8S_POD_NAMESPACE", "n")].map(pair).into(),
            ..CniArgs::default()
        }
    }

    #[test]
    fn a_request_of_the_kubelet() {
        let request = Request::new(&args()).unwrap();
        assert_eq!((request.pod.to_string(), request.uid), ("n/p".to_owned(), None));
    }

    #[test]
    fn what_is_refused() {
        let refused = |change: &dyn Fn(&mut CniArgs)| {
            let mut args = args();
            change(&mut args);
            Request::new(&args).unwrap_err()
        };
        assert!(refused(&|a| a.container_id = "a:b".into()).msg.contains("CNI_CONTAINERID"));
        assert!(refused(&|a| a.ifname.clear()).msg.contains("CNI_IFNAME"));
        assert!(refused(&|a| a.ifname = "a-very-long-name".into()).msg.contains("15"));
        assert!(refused(&|a| drop(a.args.remove("K8S_POD_NAME"))).msg.contains("K8S_POD_NAME"));
        let chained = refused(&|a| a.ips.push("10.0.0.1/24".into()));
        assert_eq!(chained.code, code::INVALID_NETWORK_CONFIG);
    }
}
