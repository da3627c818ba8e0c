//! Clients for other nodes' HTTP. Nodes speak plain HTTP to each other, and never through a proxy that the environment
//! names for the outside world; TLS is for a URL that a person gave. An image without CA roots is no reason not to
//! start: there, such a URL is refused when it is used.

use reqwest::{Client, ClientBuilder};

/// A client with the machine's CA roots, or with none where it has none; it connects directly.
pub(crate) fn build(configure: impl Fn(ClientBuilder) -> ClientBuilder) -> Client {
    let with_roots = configure(Client::builder().no_proxy()).build();
    with_roots.unwrap_or_else(|_no_roots| {
        let without = configure(Client::builder().no_proxy()).tls_certs_only([]).build();
        without.expect("nothing else in a client's configuration depends on the machine")
    })
}
