//! Waiting for a condition of the cluster, with a deadline. Looks seldom enough not to be a load itself.

use std::future::Future;
use std::time::{Duration, Instant};

use kv_tests::pass;

const POLL: Duration = Duration::from_millis(250);

/// Waits until there is something to return; panics with `what` and what was seen last when there is not in time.
pub(crate) async fn eventually<T, F, Fut>(what: &str, seconds: u64, mut attempt: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        match attempt().await {
            Ok(found) => return found,
            Err(seen) => assert!(Instant::now() < deadline, "waited {seconds} s in vain: {what}; {seen}"),
        }
        pass(POLL).await;
    }
}
