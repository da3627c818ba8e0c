//! Nodes are tuned while they run: heartbeats slower and faster than those of the others, time-outs of their own,
//! failover switched. After the faults all of it is put back.

use kv_core::contract::{Failover, Refusal, Reply, Request, Tuning, TuningChange};

use super::admin::Order;
use super::coverage::Reached;
use super::node::Place;
use super::world::World;

const INTERVALS_MS: [u64; 5] = [20, 50, 100, 250, 600];

impl World {
    /// What every node starts with.
    pub(crate) fn usual_tuning(&self) -> Tuning {
        Tuning {
            heartbeat_interval_ms: self.shape.heartbeat_ms,
            heartbeat_timeout_ms: self.shape.timeout_ms,
            failover: if self.shape.is_manual { Failover::Manual } else { Failover::Automatic },
        }
    }

    pub(crate) fn administer_tuning(&mut self) {
        if !self.shape.is_tuned {
            return;
        }
        if self.admin.repairs {
            return (0..self.nodes.len()).for_each(|index| self.tune_back(index));
        }
        if self.random.percent(30) {
            self.tune_something();
        }
    }

    fn tune_something(&mut self) {
        let index = self.random.index(self.nodes.len());
        let interval_ms = self.random.pick(&INTERVALS_MS).expect("not empty");
        let timeout_ms = interval_ms * self.random.between(2, 8);
        let tuning = match self.random.below(8) {
            0 => return self.tune_wrongly(index, interval_ms),
            1 => TuningChange {
                failover: self.random.pick(&[Failover::Manual, Failover::Automatic]),
                ..Default::default()
            },
            2 => TuningChange { heartbeat_interval_ms: Some(interval_ms), ..Default::default() },
            3 => TuningChange { heartbeat_timeout_ms: Some(timeout_ms), ..Default::default() },
            _ => both(interval_ms, timeout_ms),
        };
        self.order_once(index, Order::Tune, Request::Tune { tuning });
    }

    fn tune_wrongly(&mut self, index: usize, interval_ms: u64) {
        let timeout_ms = self.random.between(1, interval_ms);
        self.order_once(index, Order::TuneWrongly, Request::Tune { tuning: both(interval_ms, timeout_ms) });
    }

    fn tune_back(&mut self, index: usize) {
        let usual = self.usual_tuning();
        let is_tuned = self.nodes[index].process.as_ref().is_some_and(|process| process.replica.tuning() != usual);
        if is_tuned {
            let Tuning { heartbeat_interval_ms, heartbeat_timeout_ms, failover } = usual;
            let tuning = TuningChange { failover: Some(failover), ..both(heartbeat_interval_ms, heartbeat_timeout_ms) };
            self.order_once(index, Order::Tune, Request::Tune { tuning });
        }
    }

    pub(crate) fn replied_to_tuning(&mut self, place: Place, order: Order, reply: &Reply) {
        let Some(process) = self.process(place) else { return };
        let tuning = process.replica.tuning();
        assert!(tuning.heartbeat_timeout_ms > tuning.heartbeat_interval_ms, "{tuning:?}");
        let reached = match (order, reply) {
            (Order::TuneWrongly, Reply::Refused(Refusal::Invalid(_))) => Reached::TuningRefused,
            (Order::Tune, Reply::Done { .. }) if tuning.failover != self.usual_tuning().failover => {
                Reached::FailoverSwitched
            }
            (Order::Tune, Reply::Done { .. }) => Reached::Tuned,
            (Order::Tune, Reply::Refused(Refusal::Invalid(_))) => return, // one of the two alone does not fit the other
            _ => panic!("{order:?} was answered: {reply:?}"),
        };
        self.coverage.count(reached);
    }
}

fn both(interval_ms: u64, timeout_ms: u64) -> TuningChange {
    TuningChange { heartbeat_interval_ms: Some(interval_ms), heartbeat_timeout_ms: Some(timeout_ms), failover: None }
}
