//! Request and response bodies.

use std::convert::Infallible;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, WARNING};
use hyper::{Request, Response, StatusCode};
use serde_json::Value;

use crate::protobuf;
use crate::status::{ApiError, Result};

/// A response body.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What Kubernetes accepts at most.
const MAX_REQUEST: usize = 3 * 1024 * 1024;
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const AGGREGATED: HeaderValue =
    HeaderValue::from_static("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");

fn with_type(status: StatusCode, content_type: HeaderValue, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

pub(super) fn bytes(status: StatusCode, bytes: Bytes) -> Response<Body> {
    with_type(status, JSON, Full::new(bytes).boxed_unsync())
}

pub(super) fn json(status: StatusCode, value: &Value) -> Response<Body> {
    bytes(status, value.to_string().into())
}

pub(super) fn aggregated(value: &Value) -> Response<Body> {
    with_type(StatusCode::OK, AGGREGATED, Full::new(value.to_string().into()).boxed_unsync())
}

pub(super) fn text(text: &'static str) -> Response<Body> {
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    with_type(StatusCode::OK, plain, Full::new(Bytes::from_static(text.as_bytes())).boxed_unsync())
}

pub(super) fn stream(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let frames = pieces.map(|piece| Ok(Frame::data(piece)));
    with_type(StatusCode::OK, JSON, StreamBody::new(frames).boxed_unsync())
}

/// Adds warnings that `kubectl` prints.
pub(super) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// Reads a JSON, YAML or protobuf body; an empty one is null.
pub(super) async fn read(request: Request<Incoming>) -> Result<Value> {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_owned();
    let collected = Limited::new(request.into_body(), MAX_REQUEST)
        .collect()
        .await
        .map_err(|error| ApiError::bad_request(format!("reading the request body: {error}")))?;
    let bytes = collected.to_bytes();
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    if content_type.starts_with("application/vnd.kubernetes.protobuf") {
        return protobuf::decode(&bytes)
            .map_err(|error| ApiError::bad_request(format!("error decoding the body as protobuf: {error}")));
    }
    if content_type.contains("cbor") {
        return Err(ApiError::unsupported_media(&content_type, "application/json, application/yaml"));
    }
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(value),
        Err(_) if content_type.contains("yaml") => serde_yaml_ng::from_slice(&bytes)
            .map_err(|error| ApiError::bad_request(format!("error decoding the body as YAML: {error}"))),
        Err(error) => Err(ApiError::bad_request(format!("error decoding the body as JSON: {error}"))),
    }
}
