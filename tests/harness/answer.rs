//! An HTTP answer, kept whole, with the checks that the contract needs.

use std::fmt;

use serde_json::Value;

/// Status, headers and body of an answer.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub(crate) async fn read(response: reqwest::Response) -> Result<Self, reqwest::Error> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await?.to_vec();
        Ok(Self { status, headers, body })
    }

    /// The body as text; what is not UTF-8 shows as replacement characters.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("the body is not JSON ({error}): {self}"),
        }
    }

    /// A header's value; absent or not text: None.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The applied id that every answer carries.
    #[track_caller]
    pub fn kv_id(&self) -> u64 {
        let Some(id) = self.header("x-kv-id").and_then(|id| id.parse().ok()) else {
            panic!("no X-Kv-Id: {self}");
        };
        id
    }

    /// Exactly this status and this body, byte for byte.
    #[track_caller]
    pub fn is(&self, status: u16, body: &str) -> &Self {
        assert!(self.status == status && self.text() == body, "expected {status} {body}, got {self}");
        self.kv_id();
        self
    }

    /// This status, and a body with the same members and values, in any order.
    #[track_caller]
    pub fn is_json(&self, status: u16, body: &Value) -> &Self {
        assert!(self.status == status && self.json() == *body, "expected {status} {body}, got {self}");
        self.kv_id();
        self
    }

    /// An error of this status and code whose body is `{"detail": ...}` and nothing else.
    #[track_caller]
    pub fn is_error(&self, status: u16, code: &str) -> &Self {
        assert!(
            self.status == status && self.header("x-kv-error") == Some(code),
            "expected {status} {code}, got {self}"
        );
        let body = self.json();
        let members: Vec<&String> = body.as_object().map(|o| o.keys().collect()).unwrap_or_default();
        assert!(members == ["detail"], "an error's body is detail alone: {self}");
        assert!(body["detail"].is_string() || body["detail"].is_array(), "detail is text or a list: {self}");
        self.kv_id();
        self
    }

    /// The detail of an error names this.
    #[track_caller]
    pub fn names(&self, part: &str) -> &Self {
        assert!(self.json()["detail"].to_string().contains(part), "detail does not name {part:?}: {self}");
        self
    }

    #[track_caller]
    pub fn ok(&self) -> &Self {
        assert!(self.status == 200, "expected 200, got {self}");
        self
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = self.header("x-kv-error").unwrap_or("no X-Kv-Error");
        write!(f, "{} ({code}) {}", self.status, self.text())
    }
}
