//! An API server in this process, as far as the operator speaks to it, with the controllers that make pods
//! of a StatefulSet. It fails at the write that a test names: refuses it, carries it out and loses the
//! answer, or ends the operator before or after it.

pub(crate) mod nodes;
pub(crate) mod writes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use kube::Client;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::names::{APP, APP_LABEL};
use crate::resources::Kind;
use crate::watches::Caches;
use nodes::Nodes;
use writes::{OfObject, Write};

pub(crate) const NAMESPACE: &str = "apps";
/// Cannot be pulled: its pods never start.
const NO_IMAGE: &str = "no-such-image";

/// What becomes of one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// 409, and nothing is written.
    Conflict,
    /// 500, and nothing is written.
    Refused,
    /// 504, and it is written.
    LostAnswer,
    /// The operator ends: this write and all that follow never arrive.
    KilledBefore,
    /// The operator ends: this one arrives, no other does.
    KilledAfter,
}

impl Fault {
    pub(crate) const ALL: [Self; 5] =
        [Self::Conflict, Self::Refused, Self::LostAnswer, Self::KilledBefore, Self::KilledAfter];
}

/// Whether a write is carried out, and what its answer is instead.
pub(crate) struct Fate {
    pub(crate) happens: bool,
    pub(crate) answer: Option<u16>,
}

#[derive(Default, Clone)]
pub(crate) struct State {
    /// By plural and name.
    pub(crate) objects: BTreeMap<(String, String), Value>,
    version: u64,
    uids: u64,
    pub(crate) nodes: Nodes,
    /// Writes in their order, those of nodes, too.
    pub(crate) writes: Vec<String>,
    /// Of which kinds they were.
    pub(crate) written: BTreeSet<Write>,
    pub(crate) events: Vec<Value>,
    /// At the write of this number.
    pub(crate) fault: Option<(usize, Fault)>,
    pub(crate) dead: bool,
    /// The kind that is not written, and the status that says so.
    pub(crate) refuses: Option<(&'static str, u16)>,
    /// Whether the PodMonitor kind is installed.
    pub(crate) has_pod_monitors: bool,
    /// What the API server was asked, as its rules name it.
    pub(crate) asked: BTreeSet<Right>,
}

/// Group, resource and verb.
pub(crate) type Right = (String, String, String);

/// Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct World(Arc<Mutex<State>>);

impl World {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        let world = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let world = world.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect_bytes().await.unwrap();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let (status, answer) = world.state().answer(&parts.method, &parts.uri.to_string(), body);
                let response = Response::builder().status(status).body(Body::from(answer.to_string()));
                Ok::<_, std::io::Error>(response.unwrap())
            }
        });
        Client::new(service, NAMESPACE)
    }
}

impl State {
    fn fate(&mut self, what: String, write: Option<Write>) -> Fate {
        if self.dead {
            return Fate { happens: false, answer: Some(500) };
        }
        self.writes.push(what);
        self.written.extend(write);
        let fault = self.fault.filter(|(at, _)| *at + 1 == self.writes.len()).map(|(_, fault)| fault);
        self.dead = matches!(fault, Some(Fault::KilledBefore | Fault::KilledAfter));
        let answer = fault.map(|fault| match fault {
            Fault::Conflict => 409,
            Fault::LostAnswer => 504,
            Fault::Refused | Fault::KilledBefore | Fault::KilledAfter => 500,
        });
        Fate { happens: matches!(fault, None | Some(Fault::LostAnswer | Fault::KilledAfter)), answer }
    }

    fn answer(&mut self, method: &Method, uri: &str, body: Value) -> (StatusCode, Value) {
        let path = uri.split('?').next().unwrap();
        let mut parts = path.split(&format!("/namespaces/{NAMESPACE}/")).nth(1).unwrap_or_default().split('/');
        let (plural, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (key, subresource) = ((plural.to_owned(), name.to_owned()), parts.next());
        self.asked.extend(rights(method, uri));
        if plural == "events" {
            self.events.push(body.clone());
            return (StatusCode::CREATED, body);
        }
        if *method == Method::GET {
            return self.objects.get(&key).map_or_else(|| failure(404), |object| (StatusCode::OK, object.clone()));
        }
        if let Some((_, code)) = self.refuses.filter(|(refused, _)| *refused == plural) {
            return failure(code);
        }
        let (present, is_apply) = (self.objects.get(&key), uri.contains("fieldManager="));
        let write = Write::of_object(&OfObject { method, plural, subresource, is_apply, body: &body, present });
        let Fate { happens, answer } = self.fate(format!("{method} {plural}/{name}"), write);
        let done = if happens { self.write(method, key, subresource, body) } else { failure(500) };
        answer.map_or(done, failure)
    }

    fn write(
        &mut self,
        method: &Method,
        key: (String, String),
        subresource: Option<&str>,
        body: Value,
    ) -> (StatusCode, Value) {
        let present = self.objects.get(&key).cloned();
        match (method.as_str(), subresource, present) {
            ("POST", Some("eviction"), Some(pod)) => {
                let uid = &body["deleteOptions"]["preconditions"]["uid"];
                if *uid != pod["metadata"]["uid"] {
                    return failure(409);
                }
                self.objects.remove(&key);
                success()
            }
            ("DELETE", None, Some(_)) => {
                self.objects.remove(&key);
                if body["propagationPolicy"] == "Orphan" {
                    let pods = self.objects.iter_mut().filter(|((plural, _), _)| plural == "pods");
                    pods.for_each(|(_, pod)| pod["metadata"]["ownerReferences"] = json!([]));
                }
                success()
            }
            ("PUT", Some("status"), Some(mut object)) => {
                if body["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                    return failure(409);
                }
                object["status"] = body["status"].clone();
                (StatusCode::OK, self.store(key, object))
            }
            ("PUT", None, Some(object)) => {
                if body["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                    return failure(409);
                }
                (StatusCode::OK, self.store(key, body))
            }
            ("POST", None, present) => {
                let key = (key.0, body["metadata"]["name"].as_str().unwrap().to_owned());
                let exists = present.is_some() || self.objects.contains_key(&key);
                if exists { failure(409) } else { (StatusCode::CREATED, self.store(key, body)) }
            }
            // Server-side apply; pods and claims are patched by merging.
            ("PATCH", None, present) if body["kind"].is_string() => {
                let mut object = body;
                for member in ["uid", "resourceVersion"] {
                    if let Some(present) = &present {
                        object["metadata"][member] = present["metadata"][member].clone();
                    }
                }
                // What somebody else put beside ours stays; maps that are said as a whole are replaced.
                for (name, value) in present.iter().flat_map(|present| present["data"].as_object()).flatten() {
                    object["data"].as_object_mut().unwrap().entry(name.clone()).or_insert(value.clone());
                }
                (StatusCode::OK, self.store(key, object))
            }
            ("PATCH", None, Some(mut object)) => {
                merge(&mut object, &body);
                (StatusCode::OK, self.store(key, object))
            }
            _ => failure(404),
        }
    }

    /// What the chart brings for an operator to run with.
    pub(crate) fn add_service_account(&mut self, name: &str) {
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } });
        self.store(("serviceaccounts".to_owned(), name.to_owned()), account);
    }

    /// As the API server does: nothing is new when nothing differs.
    pub(crate) fn store(&mut self, key: (String, String), mut object: Value) -> Value {
        if self.objects.get(&key) == Some(&object) {
            return object;
        }
        self.version += 1;
        if object["metadata"]["uid"].is_null() {
            self.uids += 1;
            object["metadata"]["uid"] = format!("uid-{}", self.uids).into();
        }
        object["metadata"]["namespace"] = NAMESPACE.into();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(key, object.clone());
        object
    }

    /// What the watches would show by now.
    pub(crate) fn caches(&self) -> Caches {
        fn read<K: DeserializeOwned>(objects: Vec<Value>) -> Vec<K> {
            let labelled = objects.into_iter().filter(|object| object["metadata"]["labels"][APP_LABEL] == APP);
            labelled.map(|object| serde_json::from_value(object).unwrap()).collect()
        }
        let children = Kind::ALL.map(|kind| (kind, read(self.of_kind(kind.api().2))));
        Caches::of(
            children,
            read(self.of_kind("pods")),
            read(self.of_kind("persistentvolumeclaims")),
            self.has_pod_monitors,
        )
    }

    pub(crate) fn get(&self, plural: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(plural.to_owned(), name.to_owned()))
    }

    pub(crate) fn of_kind(&self, plural: &str) -> Vec<Value> {
        self.objects.iter().filter(|((p, _), _)| p == plural).map(|(_, object)| object.clone()).collect()
    }

    /// What Kubernetes does by itself: pods of the set, their claims, volumes that grow. And what nodes do.
    pub(crate) fn run_controllers(&mut self) {
        self.nodes.replace_lost();
        for mut claim in self.of_kind("persistentvolumeclaims") {
            claim["status"]["capacity"] = claim["spec"]["resources"]["requests"].clone();
            self.store(key("persistentvolumeclaims", &claim), claim);
        }
        let Some(set) = self.get("statefulsets", "demo").cloned() else { return };
        let replicas = set["spec"]["replicas"].as_u64().unwrap();
        for pod in self.of_kind("pods") {
            let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
            if name.rsplit('-').next().unwrap().parse::<u64>().unwrap() >= replicas {
                self.objects.remove(&("pods".to_owned(), name));
            }
        }
        (0..replicas).for_each(|ordinal| self.run_pod(&set, u32::try_from(ordinal).unwrap()));
    }

    fn run_pod(&mut self, set: &Value, ordinal: u32) {
        let owner = json!([{ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "demo", "controller": true,
            "uid": set["metadata"]["uid"] }]);
        let name = format!("demo-{ordinal}");
        let template = &set["spec"]["template"];
        let new = || {
            let metadata = json!({ "name": name, "labels": template["metadata"]["labels"],
                "annotations": template["metadata"]["annotations"] });
            json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
                "spec": { "nodeName": "n1", "containers": [] }, "status": self.pod_status(template, ordinal) })
        };
        let mut pod = self.get("pods", &name).cloned().unwrap_or_else(new);
        if self.get("pods", &name).is_none() {
            let settings = self.get("configmaps", "demo").map(|map| map["data"].clone()).unwrap_or_default();
            self.nodes.start(ordinal, &settings);
        }
        pod["metadata"]["ownerReferences"] = owner;
        self.store(key("pods", &pod), pod);
        let claim_template = &set["spec"]["volumeClaimTemplates"][0];
        let claim = format!("data-{name}");
        if self.get("persistentvolumeclaims", &claim).is_none() {
            let mut object = json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": claim,
                "labels": claim_template["metadata"]["labels"] }, "spec": claim_template["spec"] });
            object["status"] = json!({ "capacity": object["spec"]["resources"]["requests"] });
            self.store(key("persistentvolumeclaims", &object), object);
        }
    }

    fn pod_status(&self, template: &Value, ordinal: u32) -> Value {
        if template["spec"]["containers"][0]["image"] == NO_IMAGE {
            let waiting = json!({ "waiting": { "reason": "ImagePullBackOff" } });
            return json!({ "containerStatuses": [{ "name": "node", "image": NO_IMAGE, "imageID": "", "ready": false,
                "restartCount": 0, "state": waiting }] });
        }
        let ready = json!([{ "type": "Ready", "status": "True" }, { "type": "PodScheduled", "status": "True" }]);
        json!({ "podIP": self.nodes.address(ordinal), "conditions": ready })
    }

    /// Children, claims and the cluster's status, without what differs from run to run.
    pub(crate) fn outcome(&self) -> BTreeMap<String, Value> {
        let mut outcome = BTreeMap::new();
        for ((plural, name), object) in &self.objects {
            let mut object = object.clone();
            let metadata = object["metadata"].as_object_mut().unwrap();
            metadata.retain(|member, _| !["uid", "resourceVersion", "ownerReferences"].contains(&member.as_str()));
            match plural.as_str() {
                "secrets" => (object["data"], object["metadata"]["annotations"]) = (json!("drawn"), json!("hashed")),
                "kvclusters" => {
                    let status = object["status"].as_object_mut().unwrap();
                    status.retain(|member, _| !["clusterId", "leaderSince", "epoch"].contains(&member.as_str()));
                    for condition in status["conditions"].as_array_mut().unwrap() {
                        condition["lastTransitionTime"] = json!("then");
                    }
                }
                _ => {}
            }
            outcome.insert(format!("{plural}/{name}"), object);
        }
        outcome
    }
}

/// What a request needs: one that applies may create, too.
fn rights(method: &Method, uri: &str) -> Vec<Right> {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let mut parts = path.trim_start_matches("http://").split('/').skip_while(|part| !part.starts_with("api"));
    let group = if parts.next() == Some("apis") { parts.next().unwrap() } else { "" };
    let names: Vec<&str> = parts.skip_while(|part| *part != NAMESPACE).skip(1).collect();
    let resource = match names.as_slice() {
        [plural, _, subresource] => format!("{plural}/{subresource}"),
        [plural, ..] => (*plural).to_owned(),
        [] => panic!("{uri} is about nothing"),
    };
    let verbs: &[&str] = match method.as_str() {
        "GET" => &["get"],
        "POST" => &["create"],
        "PUT" => &["update"],
        "PATCH" if query.contains("fieldManager") => &["patch", "create"],
        "PATCH" => &["patch"],
        _ => &["delete"],
    };
    verbs.iter().map(|verb| (group.to_owned(), resource.clone(), (*verb).to_owned())).collect()
}

fn key(plural: &str, object: &Value) -> (String, String) {
    (plural.to_owned(), object["metadata"]["name"].as_str().unwrap().to_owned())
}

/// RFC 7386.
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    let target = object.as_object_mut().unwrap();
    for (name, value) in members {
        if value.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

fn success() -> (StatusCode, Value) {
    (StatusCode::OK, json!({ "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success" }))
}

fn failure(code: u16) -> (StatusCode, Value) {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        504 => "Timeout",
        _ => "InternalError",
    };
    let status = json!({ "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": "as the test wants it", "reason": reason, "code": code });
    (StatusCode::from_u16(code).unwrap(), status)
}
