//! The way of a request through nodes, and of its answer back, as `kv_node::http` has it.

use kv_core::contract::{Input, Refusal, Reply, Request, Token};
use kv_core::entry::EntryId;

use super::{Answer, Consistency, Delivery, Shown, Wish};
use crate::sim::coverage::Reached;
use crate::sim::node::{Happening, Place};
use crate::sim::world::{Event, Waiter, World};

impl World {
    /// A request arrives at a node, from a client or from the node that forwards it.
    pub(crate) fn call(&mut self, delivery: Delivery) {
        let Some(process) = self.nodes[delivery.node].process.as_ref() else {
            return self.give_answer(delivery, Answer::NotTaken);
        };
        let place = process.place;
        let Delivery { call, attempt, wish, .. } = &delivery;
        self.tell(place.node, format_args!("gets call {call} (attempt {attempt}) {wish:?}"));
        if let Some((via, _)) = delivery.via
            && !self.network.passes(via.node, place.node)
        {
            return self.give_answer(delivery, Answer::NotTaken);
        }
        self.count_late_write(&delivery);
        match delivery.wish.clone() {
            Wish::Write(command) => self.ask(place, delivery, Request::Write(command)),
            Wish::Read(_, Consistency::Linearizable) => self.ask(place, delivery, Request::ReadIndex),
            Wish::Read(_, Consistency::Local) => self.read_local(place, delivery),
        }
    }

    /// Its client has asked again meanwhile, and may have been answered.
    fn count_late_write(&mut self, delivery: &Delivery) {
        let call = self.clients.calls.get(&delivery.call);
        let is_late = call.is_none_or(|call| (call.attempt, call.route) != (delivery.attempt, delivery.route));
        if is_late && matches!(delivery.wish, Wish::Write(_)) {
            self.coverage.count(Reached::WriteCameLate);
        }
    }

    fn ask(&mut self, place: Place, delivery: Delivery, request: Request) {
        let token = Token(self.next_number());
        let Some(process) = self.process(place) else { return };
        process.waiting.insert(token, Waiter::Call(delivery));
        self.arrives(place, Happening::Step(Input::Request { token, request }));
    }

    fn read_local(&mut self, place: Place, delivery: Delivery) {
        let now = self.clock_of(place);
        let Some(process) = self.process(place) else { return };
        let view = &process.view;
        if view.answers_default_reads(now.mono_ms) {
            self.coverage.count(Reached::ReadLocal);
            self.watch_local_read(place);
            self.read_from(place, delivery, EntryId::ZERO);
        } else if view.serves {
            self.ask(place, delivery, Request::ReadIndex); // one confirmed round renews the lease
        } else {
            self.coverage.count(Reached::ReadStaleRefused);
            self.give_answer(delivery, Answer::NotTaken);
        }
    }

    /// When `id` is applied here, and what the client asks for.
    fn read_from(&mut self, place: Place, delivery: Delivery, id: EntryId) {
        let min_id = delivery.min_id;
        let Some(process) = self.process(place) else { return };
        let waits = min_id.is_some_and(|min_id| min_id > process.applied());
        process.reads.push((id.max(min_id.unwrap_or_default()), Waiter::Call(delivery)));
        if waits {
            self.coverage.count(Reached::ReadFromId);
        }
        self.answer_reads(place);
    }

    fn give_value(&mut self, place: Place, delivery: Delivery) {
        let Wish::Read(key, _) = delivery.wish.clone() else { return };
        let Some(process) = self.process(place) else { return };
        let keyspace = process.replica.keyspace();
        let found = keyspace.get(key.as_str()).found.map(|current| Shown {
            id: current.id,
            version: current.version,
            text: String::from_utf8_lossy(&current.value).into_owned(),
        });
        let at = keyspace.applied();
        if self.random.percent(20) {
            self.read_history(place, &key);
        }
        self.give_answer(delivery, Answer::Value { found, at });
    }

    pub(crate) fn replied_to_call(&mut self, place: Place, delivery: Delivery, reply: Reply) {
        match reply {
            Reply::ReadAt(id) => {
                self.watch_read_at(&delivery, id);
                self.read_from(place, delivery, id);
            }
            Reply::Refused(Refusal::NotLeader { leader }) if delivery.via.is_none() => {
                let holds = |leader| self.end_of(place, leader).or_else(|| self.place_of(leader));
                match leader.and_then(holds).filter(|leader| *leader != place) {
                    Some(leader) => self.forward(place, delivery, leader),
                    None => self.give_answer(delivery, Answer::NotTaken),
                }
            }
            reply => self.give_answer(delivery, Answer::Reply(reply)),
        }
    }

    fn forward(&mut self, place: Place, delivery: Delivery, leader: Place) {
        let delay_us = self.network.delay_us(&mut self.random);
        let Some(process) = self.process(place) else { return };
        let via = Some((place, process.view.epoch));
        let forwarded = Delivery { via, node: leader.node, ..delivery };
        self.coverage.count(Reached::Forwarded);
        self.clients.forwards.insert(forwarded.route, forwarded.clone());
        self.at(self.now_us + delay_us, Event::Call(forwarded));
    }

    /// The node has seen a new epoch: what it forwarded is asked again when that does no harm.
    pub(crate) fn forwards_are_void(&mut self, place: Place) {
        let of_place = |delivery: &&Delivery| delivery.via.is_some_and(|(via, _)| via == place);
        let void: Vec<Delivery> = self.clients.forwards.values().filter(of_place).cloned().collect();
        for delivery in void {
            self.clients.forwards.remove(&delivery.route);
            let direct = Delivery { via: None, node: place.node, ..delivery };
            let Some(call) = self.clients.calls.get(&direct.call) else { continue };
            if !call.can_be_repeated() {
                self.give_answer(direct, Answer::Reply(Reply::Refused(Refusal::OutcomeUnknown)));
                continue;
            }
            self.coverage.count(Reached::ForwardedAgain);
            let route = self.next_number();
            let Some(call) = self.clients.calls.get_mut(&direct.call) else { continue };
            call.is_open = true;
            if (call.attempt, call.route) == (direct.attempt, direct.route) {
                call.route = route;
                self.at(self.now_us + 500, Event::Call(Delivery { route, ..direct }));
            }
        }
    }

    /// On its way back to the client, by the node that forwarded the request.
    pub(crate) fn give_answer(&mut self, delivery: Delivery, answer: Answer) {
        if let Some((via, _)) = delivery.via {
            if self.clients.forwards.remove(&delivery.route).is_none() {
                return; // given up by the node that forwarded it
            }
            if self.process(via).is_none() || !self.network.passes(via.node, delivery.node) {
                return self.answer_later(delivery, Answer::Broken);
            }
        }
        self.answer_later(delivery, answer);
    }

    fn answer_later(&mut self, delivery: Delivery, answer: Answer) {
        let delay_us = self.random.between(50, 3_000);
        self.at(self.now_us + delay_us, Event::Answer(delivery, answer));
    }

    /// Reads whose id is applied here by now.
    pub(crate) fn answer_reads(&mut self, place: Place) {
        let Some(process) = self.process(place) else { return };
        let applied: EntryId = process.applied();
        let due: Vec<Waiter> =
            process.reads.extract_if(.., |(id, _)| *id <= applied).map(|(_, waiter)| waiter).collect();
        for waiter in due {
            let Waiter::Call(delivery) = waiter else { continue };
            if matches!(delivery.wish, Wish::Read(_, Consistency::Linearizable)) {
                self.coverage.count(Reached::ReadLinearizable);
            }
            self.give_value(place, delivery);
        }
    }
}
