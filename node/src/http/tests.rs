//! The router before the node is there: what needs no replica.

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;
use crate::auth_token::AuthToken;

mod group;

fn config() -> HttpConfig {
    HttpConfig {
        name: NodeName::new("leader").unwrap(),
        url: "http://localhost:8000".to_owned(),
        listed_urls: BTreeMap::new(),
        api_timeout: Duration::from_millis(200),
        value_bytes_max: 1000,
        segment_bytes_max: 1 << 20,
        seed_settings: Settings::default(),
        auth_token: Some(AuthToken::fixed(b"secret")),
        timeouts: ClientTimeouts::default(),
    }
}

async fn ask(method: &str, path: &str, body: &str) -> Response<Body> {
    let app = App::new(config(), Slot::default(), Arc::new(Metrics::new()));
    let service = service::Service::new(app.clone(), router(app));
    let request = Request::builder().method(method).uri(path).body(Body::from(body.to_owned())).unwrap();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.headers()["x-kv-id"], "0", "{method} {path}");
    response
}

async fn text(response: Response<Body>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// Status, code and body of a request that fails.
async fn failure(method: &str, path: &str, body: &str) -> (u16, String, String) {
    let response = ask(method, path, body).await;
    let code = response.headers().get("x-kv-error").map_or("", |code| code.to_str().unwrap()).to_owned();
    (response.status().as_u16(), code, text(response).await)
}

#[tokio::test]
async fn only_livez_is_well_before_recovery_has_ended() {
    assert_eq!(ask("GET", "/livez", "").await.status(), StatusCode::OK);
    for (method, path) in [
        ("GET", "/key/a"),
        ("PUT", "/key/a"),
        ("DELETE", "/key/a"),
        ("GET", "/key/a/history"),
        ("GET", "/keys"),
        ("GET", "/segments"),
        ("GET", "/cluster_status"),
        ("GET", "/status"),
        ("GET", "/readyz"),
        ("POST", "/compaction/run"),
    ] {
        let (status, code, body) = failure(method, path, r#"{"value":1}"#).await;
        assert_eq!((status, code.as_str()), (503, "not_ready"), "{method} {path}");
        assert!(body.starts_with("{\"detail\":"), "{body}");
    }
}

#[tokio::test]
async fn a_path_or_a_method_that_does_not_exist_is_an_error_like_all_others() {
    assert_eq!(failure("GET", "/nowhere", "").await, (404, "not_found".into(), r#"{"detail":"Not Found"}"#.into()));
    assert_eq!(failure("GET", "/key/a/b", "").await.0, 404);
    let response = ask("POST", "/key/a", "").await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(response.headers()["allow"], "GET,HEAD,PUT,DELETE");
    assert_eq!(text(response).await, r#"{"detail":"Method Not Allowed"}"#);
}

#[tokio::test]
async fn options_and_head_answer_sensibly() {
    let response = ask("OPTIONS", "/key/a", "").await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert_eq!(response.headers()["allow"], "GET,HEAD,PUT,DELETE");
    let response = ask("HEAD", "/livez", "").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(text(response).await, "");
}

#[tokio::test]
async fn bad_keys_are_refused_before_anything_else() {
    for (key, named) in [("", "empty"), ("%ff", "UTF-8"), (&*"k".repeat(1025), "1024")] {
        for method in ["GET", "PUT", "DELETE"] {
            let (status, code, body) = failure(method, &format!("/key/{key}"), r#"{"value":1}"#).await;
            assert_eq!((status, code.as_str()), (422, "invalid_request"), "{method} {key}");
            assert!(body.contains(named), "{body}");
        }
    }
    assert_eq!(failure("GET", "/key/%00%2F%20%F0%9F%98%80", "").await.0, 503);
}

#[tokio::test]
async fn bad_queries_and_bodies_are_refused_before_the_leader_is_asked() {
    for (method, path, body, named) in [
        ("GET", "/key/a?versoin=1", "", "versoin"),
        ("GET", "/key/a?version=-1", "", "version"),
        ("GET", "/key/a?consistency=strong", "", "consistency"),
        ("GET", "/key/a?client_id=c", "", "request_id"),
        ("GET", "/keys?limit=0", "", "limit"),
        ("GET", "/keys?cursor=xyz", "", "cursor"),
        ("GET", "/request_status?client_id=c&request_id=r", "", "operation"),
        ("GET", "/request_status?client_id=c&request_id=r&operation=set", "", "operation"),
        ("PUT", "/key/a", r#"{"value":NaN}"#, "body"),
        ("PUT", "/key/a", r#"{"version":1}"#, "value"),
        ("PUT", "/key/a?consistency=local", r#"{"value":1}"#, "consistency"),
        ("POST", "/compaction/run?force=perhaps", "", "force"),
    ] {
        let (status, code, body) = failure(method, path, body).await;
        assert_eq!((status, code.as_str()), (422, "invalid_request"), "{method} {path}");
        assert!(body.contains(named), "{body}");
    }
    let (status, code, _) = failure("PUT", "/key/a", &format!(r#"{{"value":"{}"}}"#, "x".repeat(1000))).await;
    assert_eq!((status, code.as_str()), (413, "too_large"));
    let (status, code, _) = failure("PUT", "/key/a", &" ".repeat(1000 + body::PUT_OVERHEAD_BYTES + 1)).await;
    assert_eq!((status, code.as_str()), (413, "too_large"));
}

#[tokio::test]
async fn calls_that_need_the_token_say_so() {
    for path in ["lead", "bootstrap", "members", "settings", "recover"] {
        assert_eq!(failure("POST", &format!("/cluster/{path}"), "{}").await.0, 401);
    }
    assert_eq!(failure("POST", "/settings", "{}").await.0, 401);
    assert_eq!(failure("GET", "/snapshot", "").await.0, 401);
    let (status, code, _) = failure("DELETE", "/cluster/members/00000000000000ab", "").await;
    assert_eq!((status, code.as_str()), (401, "unauthorized"));
}

#[tokio::test]
async fn the_description_covers_the_routes_and_the_page_shows_it() {
    let response = ask("GET", "/openapi.json", "").await;
    assert_eq!(response.status(), StatusCode::OK);
    let described: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
    let paths = described["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 23);
    for (path, item) in paths {
        let concrete = path.replace("{key}", "a").replace("{member_id}", "00000000000000ab");
        for (method, operation) in item.as_object().unwrap() {
            let status = ask(&method.to_uppercase(), &concrete, "").await.status();
            assert!(!matches!(status.as_u16(), 404 | 405), "{method} {path}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                assert!(response["headers"]["X-Kv-Id"].is_object(), "{method} {path} {status}");
            }
        }
    }
    let response = ask("GET", "/docs/", "").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(text(response).await.contains("swagger-ui"));
}
