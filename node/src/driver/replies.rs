//! The requests that wait for the replica's answer, by token. A token names a slot and the slot's
//! generation, so that a late answer never reaches the next tenant.

use kv_core::contract::{Reply, Token};
use tokio::sync::oneshot;

/// Requests that wait at once; above the sum of the replica's own limits, so it refuses first.
pub(crate) const WAITING_MAX: usize = 32_768;

#[derive(Debug, Default)]
pub(crate) struct Replies {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    waiting: Option<oneshot::Sender<Reply>>,
}

impl Replies {
    /// None, and the sender back: full.
    pub(crate) fn insert(&mut self, reply: oneshot::Sender<Reply>) -> Result<Token, oneshot::Sender<Reply>> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < WAITING_MAX => self.grow(),
            None => return Err(reply),
        };
        let slot = &mut self.slots[index as usize];
        slot.waiting = Some(reply);
        Ok(token(index, slot.generation))
    }

    /// A caller that has gone is ignored, and so is a token that was answered before.
    pub(crate) fn answer(&mut self, token: Token, reply: Reply) {
        if let Some(waiting) = self.take(token) {
            let _gone = waiting.send(reply);
        }
    }

    /// Forgets the callers that have gone, and names them.
    pub(crate) fn sweep_gone(&mut self) -> Vec<Token> {
        let is_gone = |slot: &Slot| slot.waiting.as_ref().is_some_and(oneshot::Sender::is_closed);
        let slots = self.slots.iter().zip(0_u32..);
        let gone: Vec<_> = slots.filter(|(s, _)| is_gone(s)).map(|(s, i)| token(i, s.generation)).collect();
        for token in &gone {
            self.take(*token);
        }
        gone
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    fn grow(&mut self) -> u32 {
        let index = u32::try_from(self.slots.len()).expect("WAITING_MAX fits");
        self.slots.push(Slot { generation: 0, waiting: None });
        index
    }

    fn take(&mut self, token: Token) -> Option<oneshot::Sender<Reply>> {
        let (index, generation) = parts(token);
        let slot = self.slots.get_mut(index as usize).filter(|s| s.generation == generation)?;
        let waiting = slot.waiting.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(waiting)
    }
}

fn token(index: u32, generation: u32) -> Token {
    Token(u64::from(generation) << 32 | u64::from(index))
}

fn parts(token: Token) -> (u32, u32) {
    let low = u32::try_from(token.0 & u64::from(u32::MAX)).expect("masked to 32 bits");
    let high = u32::try_from(token.0 >> 32).expect("shifted to 32 bits");
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_never_reaches_the_next_tenant_of_the_slot() {
        let mut replies = Replies::default();
        let (first, mut first_answer) = oneshot::channel();
        let token = replies.insert(first).expect("room");
        replies.answer(token, Reply::NotFound);
        assert_eq!(first_answer.try_recv(), Ok(Reply::NotFound));

        let (second, mut second_answer) = oneshot::channel();
        let next = replies.insert(second).expect("room");
        assert_ne!(next, token);
        replies.answer(token, Reply::NotFound);
        assert!(second_answer.try_recv().is_err());
        replies.answer(next, Reply::PreconditionFailed);
        assert_eq!(second_answer.try_recv(), Ok(Reply::PreconditionFailed));
        assert!(replies.is_empty());
    }

    #[test]
    fn callers_that_have_gone_are_named_once() {
        let mut replies = Replies::default();
        let (gone, answer) = oneshot::channel();
        let (stays, _held) = oneshot::channel();
        let token = replies.insert(gone).expect("room");
        replies.insert(stays).expect("room");
        drop(answer);
        assert_eq!(replies.sweep_gone(), [token]);
        assert_eq!(replies.sweep_gone(), []);
        assert!(!replies.is_empty());
    }
}
