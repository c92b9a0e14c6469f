//! A [`CniError`] as a detail of a gRPC status, as Coil v2 sends it: inside a `google.rpc.Status`
//! in the `grpc-status-details-bin` trailer.

use prost::Message;
use tonic::{Code, Status};

use super::CniError;

const TYPE_URL: &str = "type.googleapis.com/pkg.cnirpc.CNIError";

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// A status that carries the error.
#[must_use]
pub fn with_error(code: Code, error: &CniError) -> Status {
    let details = RpcStatus {
        code: code as i32,
        message: error.msg.clone(),
        details: vec![Any { type_url: TYPE_URL.to_owned(), value: error.encode_to_vec() }],
    };
    Status::with_details(code, &error.msg, details.encode_to_vec().into())
}

/// The error that a status carries, if any.
#[must_use]
pub fn error_of(status: &Status) -> Option<CniError> {
    let details = RpcStatus::decode(status.details()).ok()?.details;
    let detail = details.into_iter().find(|any| any.type_url == TYPE_URL)?;
    CniError::decode(detail.value.as_slice()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_travels_in_a_status() {
        let error = CniError { code: 11, msg: "pool is full".into(), details: "try again".into() };
        let status = with_error(Code::Internal, &error);
        assert_eq!(status.message(), "pool is full");
        assert_eq!(error_of(&status), Some(error));
        assert_eq!(error_of(&Status::internal("other")), None);
        assert_eq!(error_of(&Status::with_details(Code::Internal, "bad", vec![0xff].into())), None);
    }
}
