//! From the name in the leader's URL to addresses: that of its open peer connection first, then what the
//! resolver gives, which may be an address that its pod had before. Asks nobody but the system's resolver.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::Slot;

/// Who has an address already waits no longer for more.
const MORE_WAIT: Duration = Duration::from_millis(50);

/// The node, once it runs, knows its peers' addresses.
pub(super) struct LeaderName(pub(super) Slot);

impl Resolve for LeaderName {
    fn resolve(&self, name: Name) -> Resolving {
        let name = name.as_str().to_owned();
        let connected = self.0.get().and_then(|running| running.handle.address(&name));
        Box::pin(async move {
            let found = match connected {
                None => lookup_host((name.as_str(), 0)).await?.collect(),
                Some(first) => {
                    let more = timeout(MORE_WAIT, lookup_host((name.as_str(), 0))).await;
                    in_order(first, more.into_iter().flatten().flatten())
                }
            };
            Ok(Box::new(found.into_iter()) as Addrs)
        })
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
        let found = LeaderName(Slot::default()).resolve("localhost".parse().unwrap()).await.unwrap();
        assert!(found.into_iter().all(|address| address.ip().is_loopback()));
    }
}
