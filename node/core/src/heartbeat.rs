//! The failure detector: who was heard when. Time is an input; judging silence is all it does.

use crate::status::Health;

/// When one peer was last heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    at_ms: Option<u64>,
    /// The health that was last reported, so that a change is reported once.
    reported: Option<Health>,
}

impl Heard {
    pub fn mark(&mut self, now_ms: u64) {
        self.at_ms = Some(now_ms);
    }

    /// Never heard, or silent for the whole time-out: down.
    pub fn health(&self, now_ms: u64, timeout_ms: u64) -> Health {
        match self.at_ms {
            Some(at) if now_ms.saturating_sub(at) < timeout_ms => Health::Healthy,
            _ => Health::Down,
        }
    }

    pub fn ago_ms(&self, now_ms: u64) -> Option<u64> {
        self.at_ms.map(|at| now_ms.saturating_sub(at))
    }

    /// The new health, when it differs from the one reported before. A peer that was never heard
    /// is not reported as down.
    pub fn transition(&mut self, now_ms: u64, timeout_ms: u64) -> Option<Health> {
        self.at_ms?;
        let health = self.health(now_ms, timeout_ms);
        let changed = self.reported != Some(health);
        self.reported = Some(health);
        changed.then_some(health)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_down_after_the_time_out_and_healthy_on_the_first_heartbeat() {
        let mut heard = Heard::default();
        assert_eq!(heard.health(0, 10), Health::Down);
        assert_eq!(heard.transition(0, 10), None);
        heard.mark(5);
        assert_eq!(heard.transition(14, 10), Some(Health::Healthy));
        assert_eq!(heard.transition(14, 10), None);
        assert_eq!(heard.transition(15, 10), Some(Health::Down));
        heard.mark(99);
        assert_eq!(heard.transition(99, 10), Some(Health::Healthy));
        assert_eq!(heard.ago_ms(100), Some(1));
    }
}
