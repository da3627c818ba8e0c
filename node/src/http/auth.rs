//! The bearer token of administrators' calls, compared in constant time. Without a configured token
//! everything is open, for local use.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::App;
use super::error::{Code, Failure};

/// Whether a token is configured: then directives must name what they were decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Open,
    Authorized,
}

/// Lets a call pass that needs the token.
pub(crate) fn check(app: &App, headers: &HeaderMap) -> Result<Access, Failure> {
    let Some(expected) = &app.config().auth_token else { return Ok(Access::Open) };
    let given = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    if given.is_some_and(|given| same(given, &expected.load())) {
        return Ok(Access::Authorized);
    }
    Err(Failure::new(Code::Unauthorized, "This call needs the header Authorization: Bearer <token>"))
}

/// The scheme's name has no case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Over digests, so that not even the length shows in the time.
fn same(given: &[u8], expected: &[u8]) -> bool {
    Sha256::digest(given).ct_eq(&Sha256::digest(expected)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_after_the_scheme_is_the_token() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bearer  abc "), Some(&b"abc"[..]));
        assert_eq!(bearer(b"Basic abc"), None);
        assert_eq!(bearer(b"Bearer"), None);
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"ab", b"abc"));
        assert!(!same(b"", b"abc"));
    }
}
