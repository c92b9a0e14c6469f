//! Requests as they are, and answers as they come: what a typed client would hide.

use coil_apitest::Cluster;
use serde_json::Value;

/// A request body's type.
pub(crate) const JSON: &str = "application/json";
pub(crate) const JSON_PATCH: &str = "application/json-patch+json";
pub(crate) const STRATEGIC: &str = "application/strategic-merge-patch+json";
pub(crate) const MERGE: &str = "application/merge-patch+json";
pub(crate) const APPLY: &str = "application/apply-patch+yaml";

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Value,
    pub(crate) warnings: Vec<String>,
}

impl Answer {
    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    pub(crate) fn reason(&self) -> &str {
        self.body["reason"].as_str().unwrap_or_default()
    }

    /// The object of an answer that has to be a success.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!((200..300).contains(&self.code), "{}: {}", self.code, self.body);
        self.body
    }

    /// Checks a refusal: its code, its reason, and a part of its message.
    #[track_caller]
    pub(crate) fn refused(&self, code: u16, reason: &str, part: &str) {
        assert_eq!((self.code, self.reason()), (code, reason), "{}", self.body);
        assert!(self.message().contains(part), "{:?} is not in {:?}", part, self.message());
    }
}

/// Sends a request with a body of a type.
pub(crate) async fn send(cluster: &Cluster, method: &str, path: &str, kind: &str, body: &Value) -> Answer {
    exchange(cluster, (method, path), (kind, JSON), body).await
}

/// Reads in a form.
pub(crate) async fn get_as(cluster: &Cluster, path: &str, accept: &str) -> Answer {
    exchange(cluster, ("GET", path), (JSON, accept), &Value::Null).await
}

async fn exchange(
    cluster: &Cluster,
    (method, path): (&str, &str),
    (kind, accept): (&str, &str),
    body: &Value,
) -> Answer {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = http::Request::builder().method(method).uri(path);
    let request = request.header("content-type", kind).header("accept", accept);
    let response = cluster.client.send(request.body(body.into()).unwrap()).await.unwrap();
    let code = response.status().as_u16();
    let warnings = response.headers().get_all("warning").iter();
    let warnings = warnings.map(|value| value.to_str().unwrap().to_owned()).collect();
    let bytes = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into_owned().into());
    Answer { code, body, warnings }
}

pub(crate) async fn get(cluster: &Cluster, path: &str) -> Answer {
    send(cluster, "GET", path, JSON, &Value::Null).await
}

pub(crate) async fn post(cluster: &Cluster, path: &str, body: &Value) -> Answer {
    send(cluster, "POST", path, JSON, body).await
}

pub(crate) async fn put(cluster: &Cluster, path: &str, body: &Value) -> Answer {
    send(cluster, "PUT", path, JSON, body).await
}

pub(crate) async fn patch(cluster: &Cluster, path: &str, kind: &str, body: &Value) -> Answer {
    send(cluster, "PATCH", path, kind, body).await
}

pub(crate) async fn delete(cluster: &Cluster, path: &str, options: &Value) -> Answer {
    send(cluster, "DELETE", path, JSON, options).await
}
