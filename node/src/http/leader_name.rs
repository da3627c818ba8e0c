//! From the name in the leader's URL to addresses: that of its open peer connection first, at once, then what
//! the resolver gave last time, which may be an address that its pod had before. A resolver may take longer than
//! a hand-over does: nobody waits for it who knows an address. Asks nobody but the system's resolver.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;

use super::Slot;

/// More names than a group has members, over its whole life: no further one is remembered.
const NAMES_MAX: usize = 256;

/// The node, once it runs, knows its peers' addresses.
pub(super) struct LeaderName {
    node: Slot,
    looked_up: LookedUp,
}

/// What the resolver gave last, by name.
#[derive(Clone, Default)]
struct LookedUp(Arc<Mutex<BTreeMap<String, Vec<SocketAddr>>>>);

impl LeaderName {
    pub(super) fn new(node: Slot) -> Self {
        Self { node, looked_up: LookedUp::default() }
    }
}

impl Resolve for LeaderName {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        let connected = self.node.get().and_then(|running| running.handle.address(&name));
        let looked_up = self.looked_up.clone();
        Box::pin(async move {
            let found = match connected {
                None => lookup_host((name.as_str(), 0)).await?.collect(),
                Some(first) => looked_up.after(first, name),
            };
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

impl LookedUp {
    /// `first`, then what is remembered; looked up anew for the next time.
    fn after(self, first: IpAddr, name: String) -> Vec<SocketAddr> {
        let remembered = self.lock().get(&name).cloned().unwrap_or_default();
        tokio::spawn(async move {
            let Ok(found) = lookup_host((name.as_str(), 0)).await.map(Iterator::collect::<Vec<_>>) else { return };
            let mut known = self.lock();
            if known.len() < NAMES_MAX || known.contains_key(&name) {
                known.insert(name, found);
            }
        });
        in_order(first, remembered.into_iter())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<SocketAddr>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_order(first: IpAddr, more: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let first = SocketAddr::new(first, 0);
    std::iter::once(first).chain(more.filter(|address| *address != first)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_of_the_open_connection_goes_first_and_stands_once() {
        let [old, new] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        let at = |address| SocketAddr::new(address, 0);
        assert_eq!(in_order(new, [at(old)].into_iter()), [at(new), at(old)]);
        assert_eq!(in_order(new, [at(old), at(new)].into_iter()), [at(new), at(old)]);
        assert_eq!(in_order(new, [].into_iter()), [at(new)]);
    }

    #[tokio::test]
    async fn a_node_that_is_not_connected_is_looked_up() {
        let found = LeaderName::new(Slot::default()).resolve("localhost".parse().unwrap()).await.unwrap();
        assert!(found.into_iter().all(|address| address.ip().is_loopback()));
    }

    #[tokio::test]
    async fn whoever_is_connected_is_not_waited_for_and_what_the_resolver_says_serves_the_next_one() {
        let (looked_up, first) = (LookedUp::default(), IpAddr::from([10, 0, 0, 1]));
        let ask = || looked_up.clone().after(first, "localhost".to_owned());
        assert_eq!(ask(), [SocketAddr::new(first, 0)]);
        let known = async {
            while looked_up.lock().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), known).await.unwrap();
        let found = ask();
        assert_eq!(found[0].ip(), first);
        assert!(found.len() > 1 && found[1..].iter().all(|address| address.ip().is_loopback()), "{found:?}");
    }
}
