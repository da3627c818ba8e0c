//! Which of several operators works: the holder of a Lease, taken by compare-and-swap on its
//! resourceVersion. It expires when it was seen unchanged for its duration by the own clock; clocks of
//! other machines are never compared. An efficiency and no safety: two that work at once do no harm.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Resource, ResourceExt};

const LEASE: &str = "kv-operator";
/// An unchanged Lease is free after this time.
const DURATION: Duration = Duration::from_secs(15);
/// How often the holder renews it and others look at it.
const EVERY: Duration = Duration::from_secs(3);
/// The holder stops this long before others may take over: a write that is under way ends meanwhile.
const MARGIN: Duration = Duration::from_secs(5);

pub struct Turns {
    api: Api<Lease>,
    accounts: Api<ServiceAccount>,
    claimant: Claimant,
    seen: Option<Seen>,
}

/// Who takes turns.
#[derive(Debug, Clone)]
pub struct Claimant {
    pub name: String,
    /// With which it runs in a pod. The Lease goes with it: the chart brings it, and takes it along.
    pub service_account: Option<String>,
}

/// A version of the Lease, and since when it has been the present one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    version: String,
    since: Instant,
}

/// What an operator may do with a Lease that it has read.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    Take,
    Renew,
    Wait,
}

impl Turns {
    pub fn new(client: Client, namespace: &str, claimant: Claimant) -> Self {
        let accounts = Api::namespaced(client.clone(), namespace);
        Self { api: Api::namespaced(client, namespace), accounts, claimant, seen: None }
    }

    /// Returns when this operator holds the Lease. May be cancelled.
    pub async fn acquire(&mut self) {
        while !self.attempt_within(EVERY).await {
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Returns when the Lease is lost, or may be soon. May be cancelled.
    pub async fn hold(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < DURATION - MARGIN {
            tokio::time::sleep(EVERY).await;
            let began = Instant::now();
            let left = (DURATION - MARGIN).saturating_sub(renewed.elapsed());
            if self.attempt_within(left.min(EVERY)).await {
                renewed = began;
            }
        }
    }

    /// An answer that comes later is as good as none.
    async fn attempt_within(&mut self, patience: Duration) -> bool {
        tokio::time::timeout(patience, self.attempt()).await.unwrap_or(false)
    }

    /// Lets another operator begin at once.
    pub async fn release(&self) {
        let Ok(mut lease) = self.api.get(LEASE).await else { return };
        if let Some(spec) =
            lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.claimant.name))
        {
            spec.holder_identity = None;
            // Whoever waits finds out by itself when this fails.
            let _ = self.api.replace(LEASE, &PostParams::default(), &lease).await;
        }
    }

    async fn attempt(&mut self) -> bool {
        match self.try_once().await {
            Ok(held) => held,
            Err(kube::Error::Api(status)) if status.code == 409 => false,
            Err(error) => {
                tracing::warn!(%error, "the Lease could not be read or written");
                false
            }
        }
    }

    async fn try_once(&mut self) -> kube::Result<bool> {
        let lease = self.api.get_opt(LEASE).await?;
        match self.turn(lease.as_ref(), Instant::now()) {
            Turn::Wait => Ok(false),
            turn => self.write(lease, turn == Turn::Take).await.map(|()| true),
        }
    }

    fn turn(&mut self, lease: Option<&Lease>, now: Instant) -> Turn {
        let Some(lease) = lease else { return Turn::Take };
        let version = lease.resource_version().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|seen| seen.version != version) {
            self.seen = Some(Seen { version, since: now });
        }
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        let unchanged = self.seen.as_ref().map_or(Duration::ZERO, |seen| now - seen.since);
        match () {
            () if holder == self.claimant.name => Turn::Renew,
            () if holder.is_empty() || unchanged >= DURATION => Turn::Take,
            () => Turn::Wait,
        }
    }

    async fn write(&self, lease: Option<Lease>, taken: bool) -> kube::Result<()> {
        let now = MicroTime(Timestamp::now());
        let exists = lease.is_some();
        let mut lease = match lease {
            Some(lease) => lease,
            None => Lease { metadata: self.metadata().await?, ..Lease::default() },
        };
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if taken {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default() + 1);
        }
        spec.holder_identity = Some(self.claimant.name.clone());
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        spec.renew_time = Some(now);
        let written = match exists {
            true => self.api.replace(LEASE, &PostParams::default(), &lease).await?,
            false => self.api.create(&PostParams::default(), &lease).await?,
        };
        tracing::debug!(version = written.resource_version(), "the Lease is held");
        Ok(())
    }

    /// Of a Lease that is new.
    async fn metadata(&self) -> kube::Result<ObjectMeta> {
        let owner = match &self.claimant.service_account {
            Some(account) => self.accounts.get(account).await?.owner_ref(&()),
            None => None,
        };
        Ok(ObjectMeta {
            name: Some(LEASE.to_owned()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{NAMESPACE, World};

    fn lease(version: &str, holder: &str) -> Lease {
        Lease {
            metadata: ObjectMeta { resource_version: Some(version.to_owned()), ..ObjectMeta::default() },
            spec: Some(LeaseSpec { holder_identity: Some(holder.to_owned()), ..LeaseSpec::default() }),
        }
    }

    fn claimant(name: &str) -> Claimant {
        Claimant { name: name.to_owned(), service_account: None }
    }

    fn turns() -> Turns {
        let never_called = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        Turns::new(Client::try_from(never_called).unwrap(), "kv-system", claimant("me"))
    }

    #[tokio::test]
    async fn a_lease_is_taken_when_it_is_free_or_was_seen_unchanged_for_its_duration() {
        let (mut turns, start) = (turns(), Instant::now());
        assert_eq!(turns.turn(None, start), Turn::Take);
        assert_eq!(turns.turn(Some(&lease("1", "")), start), Turn::Take);
        assert_eq!(turns.turn(Some(&lease("2", "other")), start), Turn::Wait);
        assert_eq!(turns.turn(Some(&lease("2", "other")), start + DURATION / 2), Turn::Wait);
        assert_eq!(turns.turn(Some(&lease("3", "other")), start + DURATION), Turn::Wait, "it was renewed");
        assert_eq!(turns.turn(Some(&lease("3", "other")), start + DURATION * 2), Turn::Take);
        assert_eq!(turns.turn(Some(&lease("4", "me")), start), Turn::Renew);
    }

    #[tokio::test]
    async fn of_two_operators_one_works_and_the_other_takes_over_when_it_is_silent() {
        let world = World::default();
        let of = |name: &str| Turns::new(world.client(), NAMESPACE, claimant(name));
        let (mut one, mut other) = (of("one"), of("other"));
        assert!(one.attempt().await);
        assert!(!other.attempt().await);
        assert!(one.attempt().await, "it is renewed");
        assert!(!other.attempt().await);
        let seen = other.seen.as_mut().unwrap();
        seen.since = seen.since.checked_sub(DURATION).unwrap();
        assert!(other.attempt().await);
        assert!(!one.attempt().await, "whoever was silent does not take it back");
        other.release().await;
        assert!(one.attempt().await, "and need not wait for one that has ended in order");
    }

    #[tokio::test]
    async fn an_api_server_that_does_not_answer_holds_nobody_beyond_the_time_that_is_left() {
        let silent = tower::service_fn(|_: axum::http::Request<kube::client::Body>| {
            std::future::pending::<std::io::Result<axum::http::Response<axum::body::Body>>>()
        });
        let mut turns = Turns::new(Client::new(silent, NAMESPACE), NAMESPACE, claimant("me"));
        let attempt = turns.attempt_within(Duration::from_millis(50));
        let held = tokio::time::timeout(DURATION, attempt).await;
        assert!(!held.expect("the attempt ends"), "nothing was heard");
    }

    #[tokio::test]
    async fn of_two_operators_that_see_the_same_lease_one_writes_it() {
        let world = World::default();
        let of = |name: &str| Turns::new(world.client(), NAMESPACE, claimant(name));
        let (one, other) = (of("one"), of("other"));
        one.write(None, true).await.unwrap();
        let lease = one.api.get(LEASE).await.unwrap();
        other.write(Some(lease.clone()), true).await.unwrap();
        let lost = one.write(Some(lease), false).await.unwrap_err();
        assert!(matches!(lost, kube::Error::Api(status) if status.code == 409));
        let taken = other.write(None, true).await.unwrap_err();
        assert!(matches!(taken, kube::Error::Api(status) if status.code == 409), "it exists already");
    }
    #[tokio::test]
    async fn a_lease_goes_with_the_account_that_the_chart_brought() {
        let world = World::default();
        world.state().add_service_account("kv");
        let claimant = Claimant { service_account: Some("kv".to_owned()), ..claimant("one") };
        assert!(Turns::new(world.client(), NAMESPACE, claimant).attempt().await);
        let lease = world.state().get("leases", LEASE).cloned().unwrap();
        let owner = &lease["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["kind"], &owner["name"]), (&"ServiceAccount".into(), &"kv".into()));
    }
}
