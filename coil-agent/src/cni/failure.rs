//! Errors as the runtime reads them.

use coil_api::{
    cni::code,
    rpc::{CniError, status},
};
use tonic::{Code, Status};

use crate::{
    ipam::IpamError,
    net::{RtnlError, pod::PodNetError},
    node::ApplyError,
};

/// Why a request failed: a code of the CNI specification, and what happened to which object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}")]
pub struct Failure {
    /// One of [`code`].
    pub code: u32,
    /// The whole message.
    pub msg: String,
}

impl Failure {
    /// A failure with a code.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into() }
    }

    /// Says at the front which pod it is about.
    #[must_use]
    pub fn of_pod(self, pod: &str) -> Self {
        Self { msg: format!("pod {pod}: {}", self.msg), ..self }
    }

    /// As gRPC carries it.
    #[must_use]
    pub fn into_status(self) -> Status {
        let code = i32::try_from(self.code).unwrap_or_default();
        status::with_error(Code::Internal, &CniError { code, msg: self.msg, details: String::new() })
    }
}

impl From<IpamError> for Failure {
    fn from(e: IpamError) -> Self {
        Self::new(e.code(), e.to_string())
    }
}

impl From<PodNetError> for Failure {
    fn from(e: PodNetError) -> Self {
        let code = match &e {
            PodNetError::NetNs(e) if e.is_gone() => code::UNKNOWN_CONTAINER,
            PodNetError::InterfaceExists { .. } => {
                let msg = format!("CNI_IFNAME: {}", with_causes(&e));
                return Self::new(code::INVALID_ENVIRONMENT, msg);
            }
            _ => code::INTERNAL,
        };
        Self::new(code, with_causes(&e))
    }
}

impl From<RtnlError> for Failure {
    fn from(e: RtnlError) -> Self {
        Self::new(code::INTERNAL, e.to_string())
    }
}

impl From<ApplyError> for Failure {
    fn from(e: ApplyError) -> Self {
        Self::new(code::INTERNAL, e.to_string())
    }
}

/// The message and those of its causes that it does not tell itself.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
