//! An API server in memory, as far as IPAM uses one: optimistic concurrency, preconditions, finalizers,
//! owners, and a history that watches are fed from. A request does nothing until it is told to: it may be
//! carried out and answered, be lost, be carried out with the answer lost, or be carried out long after
//! its sender gave up or died.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use http::{Method, Request, Response, StatusCode};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::oneshot;

type Key = (String, String);
type Answer = Result<Response<Body>, &'static str>;

/// One request on its way.
struct Sent {
    method: Method,
    path: Vec<String>,
    query: BTreeMap<String, String>,
    body: Value,
    answer: Option<oneshot::Sender<Answer>>,
    /// How many objects had been made when it was sent.
    uids: u64,
}

impl Sent {
    fn clone_unanswered(&self) -> Self {
        let (method, path, query) = (self.method.clone(), self.path.clone(), self.query.clone());
        Self { method, path, query, body: self.body.clone(), answer: None, uids: self.uids }
    }

    /// A change of an object that was there, on its way although nobody waits for it.
    fn is_late(&self) -> bool {
        self.answer.is_none() && matches!(self.method, Method::DELETE | Method::PATCH)
    }
}

/// What became of an object, in order.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) plural: String,
    pub(crate) kind: &'static str,
    pub(crate) object: Value,
}

#[derive(Default)]
pub(crate) struct State {
    version: u64,
    uids: u64,
    objects: BTreeMap<Key, Value>,
    pub(crate) history: Vec<Change>,
    sent: BTreeMap<u64, Sent>,
    serial: u64,
    /// A request that changed an object which was made after the request was sent: it was meant for another
    /// one of the same name. Or one that could, as it names no UID and no version.
    pub(crate) misled: Option<String>,
}

/// A handle; clones share everything.
#[derive(Clone, Default)]
pub(crate) struct ApiModel(Arc<Mutex<State>>);

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

fn finalizers(object: &Value) -> usize {
    object.pointer("/metadata/finalizers").and_then(Value::as_array).map_or(0, Vec::len)
}

/// JSON merge patch (RFC 7386).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return target.clone_from(patch) };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

fn failure(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code});
    (code, status)
}

/// Tells a sender that the connection broke. It may be dead.
fn broken(sender: Option<oneshot::Sender<Answer>>) {
    if let Some(sender) = sender {
        let _ = sender.send(Err("the connection broke"));
    }
}

impl ApiModel {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A client whose requests wait for [`State::carry_out`] and the like.
    pub(crate) fn client(&self) -> Client {
        let state = self.0.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let state = state.clone();
            async move {
                let (parts, body) = request.into_parts();
                let bytes = body.collect_bytes().await?;
                let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? };
                let (sender, answer) = oneshot::channel();
                state.lock().unwrap().send(&parts, body, sender);
                match answer.await {
                    Ok(Ok(response)) => Ok(response),
                    Ok(Err(lost)) => Err(tower::BoxError::from(lost)),
                    Err(_) => Err(tower::BoxError::from("the API server forgot the request")),
                }
            }
        });
        Client::new(service, "default")
    }
}

impl State {
    fn send(&mut self, parts: &http::request::Parts, body: Value, answer: oneshot::Sender<Answer>) {
        let decode = |s: &str| s.replace("%3D", "=").replace("%2F", "/").replace("%2C", ",");
        let query = parts.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let query = query.map(|(k, v)| (k.to_owned(), decode(v))).collect();
        let path: Vec<String> =
            parts.uri.path().split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect();
        if path.iter().any(|part| part == "events") {
            // Nobody waits for Events.
            let _ = answer.send(Ok(respond(201, &body)));
            return;
        }
        // What is behind `/api/v1` or `/apis/GROUP/VERSION`.
        let path = path.into_iter().skip_while(|part| *part != "v1" && *part != "v2").skip(1).collect();
        let unnamed = match parts.method {
            Method::DELETE => text(&body, "/preconditions/uid").is_empty(),
            Method::PATCH => {
                let has = |field| !text(&body, field).is_empty();
                !has("/metadata/uid") && !has("/metadata/resourceVersion")
            }
            _ => false,
        };
        if unnamed {
            self.misled = Some(format!("{} {} says not which: {body}", parts.method, parts.uri));
        }
        self.serial += 1;
        let (method, uids) = (parts.method.clone(), self.uids);
        let sent = Sent { method, path, query, body, answer: Some(answer), uids };
        self.sent.insert(self.serial, sent);
    }

    /// Requests that can be dealt with now. A watch waits for something to tell; what is late is not here.
    pub(crate) fn waiting(&self) -> Vec<u64> {
        let ready = |sent: &Sent| {
            !sent.is_late() && (!sent.query.contains_key("watch") || !self.news_for(sent).is_empty())
        };
        self.sent.iter().filter(|(_, sent)| ready(sent)).map(|(id, _)| *id).collect()
    }

    /// Changes whose senders gave them up and that are still under way; first those that find another object of
    /// the name than was there when they were sent.
    pub(crate) fn late(&self) -> (Vec<u64>, Vec<u64>) {
        let late = self.sent.iter().filter(|(_, sent)| sent.is_late());
        let (misled, others): (Vec<_>, Vec<_>) = late.partition(|(_, sent)| match sent.path.as_slice() {
            [plural, name, ..] => self.is_younger(plural, name, sent.uids),
            _ => false,
        });
        let ids = |some: Vec<(&u64, &Sent)>| some.into_iter().map(|(id, _)| *id).collect();
        (ids(misled), ids(others))
    }

    /// For people.
    pub(crate) fn describe(&self, id: u64) -> String {
        self.sent.get(&id).map_or_else(String::new, |sent| format!("{} {}", sent.method, sent.path.join("/")))
    }

    /// Carries a request out and answers it.
    pub(crate) fn carry_out(&mut self, id: u64) {
        let Some(sent) = self.sent.remove(&id) else { return };
        let answer = self.apply(&sent);
        if let Some(waiter) = sent.answer {
            // Its sender may be dead.
            let _ = waiter.send(Ok(answer));
        }
    }

    /// Carries a request out and answers it. A change arrives once more, much later.
    pub(crate) fn double(&mut self, id: u64) {
        let Some(sent) = self.sent.get_mut(&id) else { return };
        let answer = sent.answer.take();
        let doubled = sent.is_late().then(|| sent.clone_unanswered());
        sent.answer = answer;
        self.carry_out(id);
        self.sent.extend(doubled.map(|sent| (id, sent)));
    }

    /// Carries a request out; its sender hears nothing but that the connection broke.
    pub(crate) fn lose_answer(&mut self, id: u64) {
        let Some(sent) = self.sent.remove(&id) else { return };
        drop(self.apply(&sent));
        broken(sent.answer);
    }

    /// Loses a request.
    pub(crate) fn lose(&mut self, id: u64) {
        let Some(sent) = self.sent.remove(&id) else { return };
        broken(sent.answer);
    }

    /// The sender hears that the connection broke; the request arrives some time later.
    pub(crate) fn delay(&mut self, id: u64) {
        if let Some(sent) = self.sent.get_mut(&id) {
            broken(sent.answer.take());
        }
    }

    /// The newest state of all objects of a kind.
    pub(crate) fn all(&self, plural: &str) -> Vec<Value> {
        let of_kind = self.objects.iter().filter(|((p, _), _)| p == plural);
        of_kind.map(|(_, object)| object.clone()).collect()
    }

    pub(crate) fn get(&self, plural: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(plural.to_owned(), name.to_owned()))
    }

    fn news_for(&self, sent: &Sent) -> Vec<&Change> {
        let since: u64 = sent.query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or_default();
        let field = sent.query.get("fieldSelector").and_then(|f| f.strip_prefix("metadata.name="));
        let plural = sent.path.first().cloned().unwrap_or_default();
        let wanted = |change: &&Change| {
            change.plural == plural
                && field.is_none_or(|name_wanted| name_wanted == name(&change.object))
                && text(&change.object, "/metadata/resourceVersion").parse::<u64>().unwrap() > since
        };
        self.history.iter().filter(wanted).collect()
    }

    fn apply(&mut self, sent: &Sent) -> Response<Body> {
        if sent.query.contains_key("watch") {
            let events = self.news_for(sent);
            let line = |c: &&Change| format!("{}\n", json!({"type": c.kind, "object": c.object}));
            let body: String = events.iter().map(line).collect();
            return Response::builder().status(StatusCode::OK).body(Body::from(body.into_bytes())).unwrap();
        }
        let path: Vec<&str> = sent.path.iter().map(String::as_str).collect();
        let younger = match path.as_slice() {
            [plural, name, ..] if sent.method != Method::GET => self.is_younger(plural, name, sent.uids),
            _ => false,
        };
        let before = self.version;
        let (code, body) = match (&sent.method, path.as_slice()) {
            (&Method::GET, [plural]) => self.list(plural, &sent.query),
            (&Method::GET, [plural, name]) => match self.get(plural, name) {
                Some(object) => (200, object.clone()),
                None => failure(404, "NotFound", &format!("{plural} {name:?} not found")),
            },
            (&Method::POST, [plural]) => self.create(plural, sent.body.clone()),
            (&Method::PATCH, [plural, name]) => self.patch(plural, name, &sent.body, false),
            (&Method::PATCH, [plural, name, "status"]) => self.patch(plural, name, &sent.body, true),
            (&Method::DELETE, [plural, name]) => {
                self.delete(plural, name, text(&sent.body, "/preconditions/uid"))
            }
            other => panic!("the model has no {other:?}"),
        };
        if younger && self.version > before {
            self.misled = Some(format!("{} {} {}", sent.method, sent.path.join("/"), sent.body));
        }
        respond(code, &body)
    }

    fn is_younger(&self, plural: &str, name: &str, uids: u64) -> bool {
        let uid = self.get(plural, name).map(|object| text(object, "/metadata/uid"));
        let number = uid.and_then(|uid| uid.strip_prefix("uid-")?.parse::<u64>().ok());
        number.is_some_and(|number| number > uids)
    }

    fn list(&self, plural: &str, query: &BTreeMap<String, String>) -> (u16, Value) {
        let selector = query.get("labelSelector").and_then(|s| s.split_once('='));
        let selected = |object: &Value| {
            selector.is_none_or(|(key, value)| object["metadata"]["labels"][key].as_str() == Some(value))
        };
        let items: Vec<Value> = self.all(plural).into_iter().filter(selected).collect();
        let version = self.version.to_string();
        (
            200,
            json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
        )
    }

    pub(crate) fn create(&mut self, plural: &str, mut object: Value) -> (u16, Value) {
        let key = (plural.to_owned(), name(&object).to_owned());
        if self.objects.contains_key(&key) {
            return failure(409, "AlreadyExists", &format!("{plural} {:?} already exists", key.1));
        }
        self.uids += 1;
        object["metadata"]["uid"] = json!(format!("uid-{}", self.uids));
        let at = i64::try_from(self.version).unwrap();
        object["metadata"]["creationTimestamp"] =
            json!(k8s_openapi::jiff::Timestamp::from_second(at).unwrap().to_string());
        (201, self.put(&key, object, "ADDED"))
    }

    fn put(&mut self, key: &Key, mut object: Value, kind: &'static str) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let plural = key.0.clone();
        self.history.push(Change { plural, kind, object: object.clone() });
        if kind == "DELETED" {
            self.objects.remove(key);
            self.collect(text(&object, "/metadata/uid"));
        } else {
            self.objects.insert(key.clone(), object.clone());
        }
        object
    }

    /// What Kubernetes' garbage collector does when an owner is gone.
    fn collect(&mut self, owner: &str) {
        let owned = |object: &Value| {
            let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
            owners.is_some_and(|owners| owners.iter().any(|o| o["uid"] == *owner))
        };
        let keys: Vec<Key> = self.objects.iter().filter(|(_, o)| owned(o)).map(|(k, _)| k.clone()).collect();
        for (plural, name) in keys {
            self.delete(&plural, &name, "");
        }
    }

    pub(crate) fn patch(&mut self, plural: &str, name: &str, patch: &Value, status: bool) -> (u16, Value) {
        let key = (plural.to_owned(), name.to_owned());
        let Some(old) = self.objects.get(&key) else {
            return failure(404, "NotFound", &format!("{plural} {name:?} not found"));
        };
        for field in ["resourceVersion", "uid"] {
            let wanted = &patch["metadata"][field];
            if !wanted.is_null() && *wanted != old["metadata"][field] {
                return failure(409, "Conflict", &format!("{plural} {name:?} is another version"));
            }
        }
        let mut new = old.clone();
        if status {
            merge(&mut new["status"], &patch["status"]);
        } else {
            let mut patch = patch.clone();
            patch.as_object_mut().unwrap().remove("status");
            merge(&mut new, &patch);
        }
        if new == *old {
            return (200, new);
        }
        let leaves = !new["metadata"]["deletionTimestamp"].is_null() && finalizers(&new) == 0;
        (200, self.put(&key, new, if leaves { "DELETED" } else { "MODIFIED" }))
    }

    pub(crate) fn delete(&mut self, plural: &str, name: &str, uid: &str) -> (u16, Value) {
        let key = (plural.to_owned(), name.to_owned());
        let Some(old) = self.objects.get(&key) else {
            return failure(404, "NotFound", &format!("{plural} {name:?} not found"));
        };
        if !uid.is_empty() && text(old, "/metadata/uid") != uid {
            return failure(409, "Conflict", &format!("{plural} {name:?} has another uid"));
        }
        let mut object = old.clone();
        if finalizers(old) == 0 {
            self.put(&key, object, "DELETED");
            return (200, json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}));
        }
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
            object = self.put(&key, object, "MODIFIED");
        }
        (200, object)
    }
}

fn respond(code: u16, body: &Value) -> Response<Body> {
    Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).unwrap()
}
