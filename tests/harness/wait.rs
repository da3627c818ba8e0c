//! Waiting for a condition with a deadline: the only place of the tests that lets time pass.

use std::future::Future;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// The usual deadline, generous for a loaded machine with two cores.
pub const START_SECONDS: u64 = 30;

/// Waits until the condition holds; panics with `what` when it does not within `seconds`.
pub async fn wait_until<F, Fut>(what: &str, seconds: u64, mut condition: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    wait_for(what, seconds, || {
        let holds = condition();
        async { holds.await.then_some(()) }
    })
    .await;
}

/// Waits until there is something to return; panics with `what` when there is not within `seconds`.
pub async fn wait_for<T, F, Fut>(what: &str, seconds: u64, mut attempt: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {seconds} s in vain: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Lets time pass, for what is paced by time itself: a fault that lasts, a link that delays. Never to wait
/// for a condition.
pub async fn pass(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// A short pause between attempts of a client that retries.
pub(crate) async fn back_off() {
    tokio::time::sleep(POLL).await;
}
