//! Under which address each peer was last connected, by the name in its URLs. A pod comes back under another
//! address, and names go on giving the old one for as long as somebody caches it: a connection that is open
//! knows better. Written by the peer tasks; read by whoever sends requests on to the leader.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::dial::host_and_port;

/// More names than a group has members, over its whole life: from then on no new one is noted.
const NAMES_MAX: usize = 256;

#[derive(Debug, Clone, Default)]
pub(crate) struct Addresses(Arc<Mutex<BTreeMap<String, IpAddr>>>);

impl Addresses {
    /// A connection with the process of these URLs goes to `address`. Where clients are served under another
    /// name than peers, nothing is known.
    pub(super) fn note(&self, url: &str, peer_url: &str, address: IpAddr) {
        let Some(name) = host(url).filter(|name| host(peer_url) == Some(*name)) else { return };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < NAMES_MAX || known.contains_key(name) {
            known.insert(name.to_owned(), address);
        }
    }

    pub(crate) fn of(&self, name: &str) -> Option<IpAddr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }
}

fn host(url: &str) -> Option<&str> {
    host_and_port(url).ok()?.rsplit_once(':').map(|(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_address_of_the_last_connection() {
        let addresses = Addresses::default();
        for last in [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from) {
            addresses.note("http://demo-0.nodes:8000", "http://demo-0.nodes:9000", last);
            assert_eq!((addresses.of("demo-0.nodes"), addresses.of("demo-0")), (Some(last), None));
        }
    }

    #[test]
    fn a_name_that_is_for_clients_alone_has_none() {
        let addresses = Addresses::default();
        for peer_url in ["http://private.example:9000", "public.example"] {
            addresses.note("http://public.example:8000", peer_url, [10, 0, 0, 1].into());
        }
        assert_eq!(addresses.of("public.example"), None);
    }
}
