//! Requests that only the leader can carry out: here when this node leads, else sent on to the
//! leader, and again while it is sure that nothing was done (or that doing it twice is harmless).
//! The rules are in [`carry_out`]. Never forwards what was forwarded already.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::Response;
use kv_core::contract::{Refusal, Reply, Request, View};
use kv_core::entry::EntryId;
use kv_core::status::Role;
use percent_encoding::percent_decode_str;
use tokio::time::{Instant, timeout_at};

use super::App;
use super::answer::{IDEMPOTENT_REPLAY, X_KV_CURSOR, X_KV_ID};
use super::error::{Asked, Code, Failure, X_KV_ERROR};
use super::leader_name::LeaderName;
use crate::driver::Handle;
use crate::http_client;

/// Set on a forwarded request: who gets it and does not lead says so instead of sending it on. It holds
/// the path and query when no URL can.
pub(crate) const X_KV_FORWARDED: HeaderName = HeaderName::from_static("x-kv-forwarded");
/// The path of no key.
const EMPTY_KEY: &str = "/key/";

/// A forwarded write is relayed when it is applied here, or after this long.
const APPLY_WAIT: Duration = Duration::from_millis(100);
/// After a new epoch an answer of the old leader that is on its way may still arrive for this long. Who can
/// send again does so soon, and nobody waits for one that had fallen silent; who cannot send again waits as long
/// as a hand-over may take.
const OLD_LEADER_GRACE: Duration = Duration::from_millis(100);
const OLD_LEADER_GRACE_MAX: Duration = Duration::from_secs(1);
/// Attempts are this far apart at first, twice as far each time, at most [`BACKOFF_MAX`].
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(200);
/// Idle connections to the leader end before the leader ends them ([`super::ClientTimeouts::head`]).
const IDLE_MAX: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

const REQUEST_HEADERS: [HeaderName; 4] = [CONTENT_TYPE, IF_MATCH, IF_NONE_MATCH, AUTHORIZATION];
const ANSWER_HEADERS: [HeaderName; 9] = [
    CONTENT_TYPE,
    CONTENT_LENGTH,
    ETAG,
    RETRY_AFTER,
    WWW_AUTHENTICATE,
    X_KV_CURSOR,
    X_KV_ERROR,
    X_KV_ID,
    IDEMPOTENT_REPLAY,
];

/// What may be done when it is unknown whether a request took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing, or carries request ids: send it again.
    Harmless,
    /// It is never sent again: `outcome_unknown`.
    Never,
}

/// A request as it came in, for sending it on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LeaderRequest<'a> {
    pub(crate) parts: &'a Parts,
    pub(crate) body: &'a Bytes,
    pub(crate) repeat: Repeat,
    pub(crate) asked: Asked,
}

/// How it was carried out.
#[derive(Debug)]
pub(crate) enum Done {
    Here(Reply),
    /// The leader's answer, ready to go out.
    Relayed(Response),
}

/// How one attempt ended.
enum Attempt {
    Done(Done),
    /// Without effect, and trying again is of no use.
    Final(Failure),
    /// Certainly without effect: try again, and when time is up say this.
    WithoutEffect(Failure),
    Unknown,
}

pub(crate) fn client(leader_name: LeaderName) -> reqwest::Client {
    let leader_name = Arc::new(leader_name);
    http_client::build(|builder| {
        builder
            .dns_resolver(Arc::clone(&leader_name))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_MAX)
            .tcp_nodelay(true)
    })
}

/// Carries `request` out on this node if it leads, else on the leader. Tries again until `deadline`
/// after what surely had no effect; after an unknown outcome only when [`Repeat::Harmless`].
/// May be cancelled: what was proposed goes on.
pub(crate) async fn carry_out(
    app: &App,
    handle: &Handle,
    request: LeaderRequest<'_>,
    here: Request,
    deadline: Instant,
) -> Result<Done, Failure> {
    let mut pause = BACKOFF_FIRST;
    let mut uncertain = false; // an earlier attempt may have taken effect: no failure may deny it
    loop {
        let view = handle.view();
        let attempt = if view.role == Role::Leader {
            attempt_here(handle, request.asked, here.clone(), deadline).await
        } else if request.parts.headers.contains_key(X_KV_FORWARDED) {
            Attempt::Final(Failure::no_leader())
        } else if let Some(url) = leader_url(&view) {
            attempt_there(app, handle, request, url, &view, deadline).await
        } else {
            attempt_later(handle, &view, deadline).await
        };
        let failure = match attempt {
            Attempt::Done(done) => return Ok(done),
            Attempt::Final(_) | Attempt::WithoutEffect(_) if uncertain => unknown(request.asked),
            Attempt::Final(failure) => return Err(failure),
            Attempt::WithoutEffect(failure) => failure,
            Attempt::Unknown => {
                uncertain = true;
                unknown(request.asked)
            }
        };
        let hopeless = uncertain && request.repeat == Repeat::Never;
        if hopeless || Instant::now() + pause >= deadline {
            return Err(failure);
        }
        back_off(handle, &view, pause).await;
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

fn leader_url(view: &View) -> Option<&str> {
    view.leader.and_then(|leader| view.urls.get(&leader)).map(String::as_str)
}

fn unknown(asked: Asked) -> Failure {
    match asked {
        Asked::Read => Failure::new(Code::Timeout, "The leader did not answer in time"),
        Asked::Write => Failure::outcome_unknown(),
    }
}

async fn attempt_here(handle: &Handle, asked: Asked, here: Request, deadline: Instant) -> Attempt {
    match handle.request(here, deadline).await {
        Ok(Reply::Refused(refusal @ (Refusal::NotLeader { .. } | Refusal::NotConfirmed | Refusal::NotReady(_)))) => {
            Attempt::WithoutEffect(refusal.into())
        }
        Ok(Reply::Refused(Refusal::OutcomeUnknown)) => Attempt::Unknown,
        Ok(reply) => Attempt::Done(Done::Here(reply)),
        Err(error) => Attempt::Final(Failure::call(error, asked)),
    }
}

/// Nobody is known to lead: waits for somebody.
async fn attempt_later(handle: &Handle, view: &View, deadline: Instant) -> Attempt {
    if view.role == Role::Uninitialised {
        return Attempt::Final(Failure::not_ready("The node is not a member of a group yet"));
    }
    let leads = |view: &View| view.role == Role::Leader || leader_url(view).is_some();
    match handle.wait_view(deadline, leads).await {
        Some(_) => Attempt::WithoutEffect(Failure::no_leader()),
        None => Attempt::Final(Failure::no_leader()),
    }
}

/// Sends the request to the leader. A new epoch ends the waiting.
async fn attempt_there(
    app: &App,
    handle: &Handle,
    request: LeaderRequest<'_>,
    url: &str,
    view: &View,
    deadline: Instant,
) -> Attempt {
    let new_epoch = async {
        handle.epoch_above(view.epoch).await;
        let waits = request.repeat == Repeat::Never && !handle.view().leader_fell_silent;
        tokio::time::sleep(if waits { OLD_LEADER_GRACE_MAX } else { OLD_LEADER_GRACE }).await;
    };
    app.metrics().count_forward();
    tokio::select! {
        sent = timeout_at(deadline, send(app, handle, request, url, deadline)) => sent.unwrap_or(Attempt::Unknown),
        () = new_epoch => Attempt::Unknown,
    }
}

async fn send(app: &App, handle: &Handle, request: LeaderRequest<'_>, url: &str, deadline: Instant) -> Attempt {
    let LeaderRequest { parts, body, asked, .. } = request;
    let Some((url, marker)) = leader_address(url, &parts.uri) else { return Attempt::WithoutEffect(unreachable()) };
    let mut headers = selected(&parts.headers, &REQUEST_HEADERS);
    headers.insert(X_KV_FORWARDED, marker);
    let outgoing = app.client().request(parts.method.clone(), url).headers(headers).body(body.clone());
    let answer = match outgoing.send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() || error.is_builder() => {
            return Attempt::WithoutEffect(unreachable());
        }
        Err(_) => return Attempt::Unknown,
    };
    match verdict(&answer) {
        Verdict::Final => {}
        Verdict::WithoutEffect => {
            return Attempt::WithoutEffect(Failure::new(Code::NoLeader, "The leader is changing; nothing was changed"));
        }
        Verdict::Unknown => return Attempt::Unknown,
    }
    relay(handle, answer, asked, deadline).await
}

/// The same path and query on the leader, and the value of [`X_KV_FORWARDED`]. URLs give some segments
/// (`.` and `..`, also written with `%2E`) another meaning: such a path travels in the header, to the path
/// of an empty key, which takes no effect by itself. None: the leader's URL is none.
fn leader_address(leader: &str, asked: &Uri) -> Option<(reqwest::Url, HeaderValue)> {
    let leader = leader.trim_end_matches('/');
    let path_and_query = asked.path_and_query().map_or("/", |path| path.as_str());
    let url = reqwest::Url::parse(&format!("{leader}{path_and_query}")).ok()?;
    let segments = |path: &str| path.bytes().filter(|byte| *byte == b'/').count();
    let means_the_same = percent_decode_str(url.path()).eq(percent_decode_str(asked.path()));
    if segments(url.path()) == segments(asked.path()) && means_the_same {
        return Some((url, HeaderValue::from_static("1")));
    }
    let url = reqwest::Url::parse(&format!("{leader}{EMPTY_KEY}")).ok()?;
    Some((url, HeaderValue::from_bytes(path_and_query.as_bytes()).ok()?))
}

/// Gives a forwarded request the path that no URL could carry. Only in place of an empty key, and only
/// that of a key: no other path comes past whoever guards paths in front of this node.
pub(crate) fn restore_path(request: &mut axum::http::Request<Body>) {
    if request.uri().path() != EMPTY_KEY {
        return;
    }
    let path = request.headers().get(X_KV_FORWARDED).map(HeaderValue::as_bytes);
    let uri = path.filter(|path| path.starts_with(EMPTY_KEY.as_bytes())).map(Uri::try_from);
    if let Some(Ok(uri)) = uri {
        *request.uri_mut() = uri;
    }
}

fn unreachable() -> Failure {
    Failure::new(Code::NoLeader, "The leader cannot be reached")
}

/// What the leader's answer says about going on.
enum Verdict {
    Final,
    WithoutEffect,
    Unknown,
}

fn verdict(answer: &reqwest::Response) -> Verdict {
    let code = answer.headers().get(X_KV_ERROR).map(HeaderValue::as_bytes);
    match code {
        Some(code) if answer.status() == StatusCode::SERVICE_UNAVAILABLE => {
            if code == Code::NoLeader.row().1.as_bytes() || code == Code::NotReady.row().1.as_bytes() {
                Verdict::WithoutEffect
            } else if code == Code::OutcomeUnknown.row().1.as_bytes() {
                Verdict::Unknown
            } else {
                Verdict::Final
            }
        }
        _ => Verdict::Final,
    }
}

/// Makes of the leader's answer our own. A write's body is read to its end first (it is short, and
/// a half one is no answer); a read's is passed on as it comes.
async fn relay(handle: &Handle, answer: reqwest::Response, asked: Asked, deadline: Instant) -> Attempt {
    let status = answer.status();
    let headers = selected(answer.headers(), &ANSWER_HEADERS);
    let body = match asked {
        Asked::Read => Body::from_stream(answer.bytes_stream()),
        Asked::Write => match answer.bytes().await {
            Ok(bytes) => Body::from(bytes),
            Err(_) => return Attempt::Unknown,
        },
    };
    if asked == Asked::Write && status.is_success() {
        wait_until_seen_here(handle, &headers, deadline).await;
    }
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Attempt::Done(Done::Relayed(response))
}

/// So that the next read on the same connection sees the write.
async fn wait_until_seen_here(handle: &Handle, headers: &HeaderMap, deadline: Instant) {
    let id = headers.get(X_KV_ID).and_then(|id| id.to_str().ok()).and_then(|id| id.parse().ok());
    if let Some(id) = id {
        handle.wait_applied(EntryId(id), deadline.min(Instant::now() + APPLY_WAIT)).await;
    }
}

fn selected(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let mut chosen = HeaderMap::with_capacity(names.len());
    for name in names {
        for value in headers.get_all(name) {
            chosen.append(name.clone(), value.clone());
        }
    }
    chosen
}

/// Waits half to all of `pause`, or until somebody else leads.
async fn back_off(handle: &Handle, seen: &View, pause: Duration) {
    let pause = pause.mul_f64(0.5 + 0.5 * random_share());
    let another = |view: &View| view.epoch != seen.epoch || view.leader != seen.leader || view.role != seen.role;
    handle.wait_view(Instant::now() + pause, another).await;
}

/// In [0, 1): spreads attempts of many waiting requests.
fn random_share() -> f64 {
    let drawn = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(drawn) / (f64::from(u32::MAX) + 1.0)
}

/// A reply that belongs to another kind of request: our bug.
pub(crate) fn unexpected(reply: &Reply) -> Failure {
    tracing::error!(?reply, "the replica answered another question than was asked");
    Failure::internal("The node did not understand its own answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_arrives_at_the_leader_as_it_was_asked() {
        let forwarded = |path: &'static str| leader_address("http://leader:8000/", &Uri::from_static(path)).unwrap();
        let (url, marker) = forwarded("/key/a%2Fb?client_id=x");
        assert_eq!((url.as_str(), marker.as_bytes()), ("http://leader:8000/key/a%2Fb?client_id=x", &b"1"[..]));
        assert_eq!(forwarded("/key/a|b^c").1, "1");
        assert_eq!(forwarded("/key/...").1, "1");
        for rewritten in ["/key/..", "/key/%2e?min_id=1", "/key/%2E%2e", "/key/.%2e/history", "/key/%2e/history"] {
            let (url, marker) = forwarded(rewritten);
            let mut request = axum::http::Request::new(Body::empty());
            *request.uri_mut() = Uri::try_from(url.path()).unwrap();
            request.headers_mut().insert(X_KV_FORWARDED, marker);
            restore_path(&mut request);
            assert_eq!(request.uri(), rewritten);
        }
    }

    #[test]
    fn only_the_path_of_an_empty_key_is_replaced_and_only_by_that_of_a_key() {
        for (path, marker) in [("/key/a", "/key/b"), ("/key/", "/cluster/recover"), ("/key/", "1"), ("/keys", "/key/b")]
        {
            let mut request = axum::http::Request::new(Body::empty());
            *request.uri_mut() = Uri::from_static(path);
            request.headers_mut().insert(X_KV_FORWARDED, HeaderValue::from_static(marker));
            restore_path(&mut request);
            assert_eq!(request.uri(), path);
        }
    }

    #[test]
    fn pauses_are_spread() {
        let shares: Vec<f64> = (0..100).map(|_| random_share()).collect();
        assert!(shares.iter().all(|share| (0.0..1.0).contains(share)));
        assert!(shares.iter().any(|share| *share < 0.5) && shares.iter().any(|share| *share >= 0.5));
    }
}
