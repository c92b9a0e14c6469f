//! What is read out of the plugin's request.

use std::path::PathBuf;

use coil_api::{
    cni::{NetConf, code},
    names::{ARG_IS_CHAINED, ARG_POD_NAME, ARG_POD_NAMESPACE, ARG_POD_UID},
    rpc::CniArgs,
};

use super::Failure;
use crate::{ipam::AttachmentId, watch::index::ObjectKey};

/// A request for ADD or CHECK, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    /// As the runtime names the attachment.
    pub(super) owner: AttachmentId,
    pub(super) pod: ObjectKey,
    pub(super) uid: Option<String>,
    pub(super) netns: PathBuf,
    /// Another plugin connected the pod. Of CHECK it says nothing: the result of ADD comes with that.
    pub(super) chained: bool,
    /// The network configuration's name; empty when an older plugin did not pass it on.
    pub(super) network: String,
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

/// What DEL is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaving {
    /// As the runtime names the attachment.
    pub(super) owner: AttachmentId,
    /// The pod's UID, from runtimes that tell it.
    pub(super) uid: Option<String>,
    /// The pod's namespace, which may be gone.
    pub(super) netns: Option<PathBuf>,
}

impl Leaving {
    pub(super) fn new(args: &CniArgs) -> Result<Self, Failure> {
        let given = |value: &String| Some(value.clone()).filter(|value| !value.is_empty());
        Ok(Self {
            owner: owner(args)?,
            uid: args.args.get(ARG_POD_UID).and_then(given),
            netns: given(&args.netns).map(PathBuf::from),
        })
    }
}

/// What DEL says of the pod, for the log: it may say nothing.
pub(super) fn pod(args: &CniArgs) -> String {
    let arg = |name: &str| args.args.get(name).cloned().unwrap_or_default();
    ObjectKey { namespace: arg(ARG_POD_NAMESPACE), name: arg(ARG_POD_NAME) }.to_string()
}

/// The network configuration that the plugin was given.
pub(super) fn config(args: &CniArgs) -> Result<NetConf, Failure> {
    serde_json::from_slice(&args.stdin_data).map_err(|e| {
        Failure::new(code::DECODING_FAILURE, format!("cannot read the network configuration: {e}"))
    })
}

impl Request {
    pub(super) fn new(args: &CniArgs) -> Result<Self, Failure> {
        let owner = owner(args)?;
        let arg = |name: &str| args.args.get(name).filter(|value| !value.is_empty());
        let (Some(namespace), Some(pod)) = (arg(ARG_POD_NAMESPACE), arg(ARG_POD_NAME)) else {
            let missing: Vec<&str> =
                [ARG_POD_NAMESPACE, ARG_POD_NAME].into_iter().filter(|name| arg(name).is_none()).collect();
            let msg = format!("CNI_ARGS has no {}: is the runtime Kubernetes'?", missing.join(" and no "));
            return Err(Failure::new(code::INVALID_ENVIRONMENT, msg));
        };
        if args.netns.is_empty() {
            return Err(Failure::new(code::INVALID_ENVIRONMENT, "CNI_NETNS is missing"));
        }
        let chained = match arg(ARG_IS_CHAINED) {
            Some(value) => value == "true",
            None => !args.ips.is_empty() || !args.interfaces.is_empty(),
        };
        Ok(Self {
            owner,
            pod: ObjectKey::new(namespace, pod),
            uid: arg(ARG_POD_UID).cloned(),
            netns: PathBuf::from(&args.netns),
            chained,
            network: config(args).map(|config| config.name).unwrap_or_default(),
        })
    }

    /// The request's place in the chain of plugins must be the one that `--enable-ipam` means.
    pub(super) fn check_place(&self, ipam: bool) -> Result<(), Failure> {
        let msg = match (ipam, self.chained) {
            (true, false) | (false, true) => return Ok(()),
            (true, true) => {
                "coil gives the pod its addresses, so it must be the first plugin in the chain: the configuration \
                 has a prevResult. To run coil after another plugin, start coild with --enable-ipam=false"
            }
            (false, false) => {
                "coild runs with --enable-ipam=false, so another plugin must come before coil in the chain and \
                 connect the pod: the configuration has no prevResult"
            }
        };
        Err(Failure::new(code::INVALID_NETWORK_CONFIG, msg))
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
            stdin_data: br#"{"cniVersion":"1.0.0","name":"net"}"#.to_vec(),
            ..CniArgs::default()
        }
    }

    fn with(change: impl Fn(&mut CniArgs)) -> Result<Request, Failure> {
        let mut args = args();
        change(&mut args);
        Request::new(&args)
    }

    #[test]
    fn a_request_of_the_kubelet() {
        let request = with(|_| {}).unwrap();
        assert_eq!((request.pod.to_string(), request.uid.as_ref()), ("n/p".to_owned(), None));
        assert_eq!((request.network.as_str(), request.chained), ("net", false));
        assert_eq!(with(|a| a.stdin_data.clear()).unwrap().network, "");
    }

    #[test]
    fn what_is_refused() {
        let refused = |change: &dyn Fn(&mut CniArgs)| {
            let failure = with(change).unwrap_err();
            assert_eq!(failure.code, code::INVALID_ENVIRONMENT);
            failure.msg
        };
        assert!(refused(&|a| a.container_id = "a:b".into()).contains("CNI_CONTAINERID"));
        assert!(refused(&|a| a.ifname.clear()).contains("CNI_IFNAME"));
        assert!(refused(&|a| a.ifname = "a-very-long-name".into()).contains("15"));
        assert!(refused(&|a| a.netns.clear()).contains("CNI_NETNS"));
        assert!(refused(&|a| drop(a.args.remove("K8S_POD_NAME"))).contains("no K8S_POD_NAME:"));
        assert!(refused(&|a| a.args.clear()).contains("K8S_POD_NAMESPACE and no K8S_POD_NAME"));
    }

    #[test]
    fn the_place_in_the_chain_follows_the_flag() {
        let chained = |ip: &str, flag: Option<&str>| {
            with(|a| {
                a.ips.extend(Some(ip.to_owned()).filter(|ip| !ip.is_empty()));
                a.args.extend(flag.map(|value| (ARG_IS_CHAINED.to_owned(), value.to_owned())));
            })
            .unwrap()
        };
        assert!(chained("10.0.0.1", None).chained, "as a plugin without the flag");
        assert!(chained("", Some("true")).chained, "of a plugin that gave no addresses");
        assert!(!chained("", Some("false")).chained);
        for (request, ipam, part) in [
            (chained("", Some("true")), true, "must be the first plugin"),
            (chained("", Some("false")), false, "--enable-ipam=false"),
        ] {
            let failure = request.check_place(ipam).unwrap_err();
            assert_eq!(failure.code, code::INVALID_NETWORK_CONFIG);
            assert!(failure.msg.contains(part), "{}", failure.msg);
            request.check_place(!ipam).unwrap();
        }
    }
}
