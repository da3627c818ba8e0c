//! The Secret with the token that nodes and operator show each other.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;

use super::metadata;
use crate::names::TOKEN_KEY;
use crate::validate::Desired;

/// The token was drawn once, and is what was seen from then on.
pub(super) fn build(desired: &Desired, token: &str) -> Secret {
    Secret {
        metadata: metadata(desired, desired.identity.secret()),
        type_: Some("Opaque".to_owned()),
        data: Some(BTreeMap::from([(TOKEN_KEY.to_owned(), ByteString(token.as_bytes().to_vec()))])),
        ..Secret::default()
    }
}
