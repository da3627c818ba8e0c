//! Clients: each does one thing at a time, to any node, gives up waiting, and asks again with its request
//! id or does not. Between them and the replicas stands what `kv_node::http` does: a node that does not
//! lead forwards, and a new epoch ends waiting forwards. What a client is told goes to the checks.

mod commands;
mod recording;
mod routes;

use std::collections::BTreeMap;

use kv_core::command::{Command, Key};
use kv_core::contract::{Refusal, Reply};
use kv_core::entry::{EntryId, Epoch};

use super::coverage::Reached;
use super::node::Place;
use super::world::{Event, World};
use crate::history::{Outcome, Recorder, Ticket};

/// A client gives up on an operation after so many attempts.
const ATTEMPTS_MAX: u64 = 8;

/// What a client wants.
#[derive(Debug, Clone)]
pub(crate) enum Wish {
    Write(Command),
    Read(Key, Consistency),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consistency {
    Local,
    Linearizable,
}

/// One operation of a client, with all its attempts.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) client: usize,
    pub(crate) wish: Wish,
    /// The highest id that anybody had been shown when it began.
    pub(crate) floor: EntryId,
    /// A read that is to be of a state with this id.
    pub(crate) min_id: Option<EntryId>,
    attempt: u64,
    /// The way its present attempt takes; answers that come another way are void.
    route: u64,
    /// An attempt may have taken effect without an answer.
    is_open: bool,
}

/// One attempt on its way to a node. It arrives also when its client has given it up, and waits for another answer or none.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) call: u64,
    pub(crate) wish: Wish,
    min_id: Option<EntryId>,
    attempt: u64,
    route: u64,
    pub(crate) node: usize,
    /// The node that forwards it, and the epoch that it believed in.
    via: Option<(Place, Epoch)>,
}

#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Reply(Reply),
    /// What a read showed, true at an id.
    Value {
        found: Option<Shown>,
        at: EntryId,
    },
    /// Nobody took the request.
    NotTaken,
    /// The connection broke: nobody knows.
    Broken,
}

/// A value with its id and version.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) id: EntryId,
    pub(crate) version: u64,
    pub(crate) text: String,
}

#[derive(Debug, Clone, Copy, Default)]
struct Served {
    write: bool,
    linearizable_read: bool,
}

#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) count: usize,
    calls: BTreeMap<u64, Call>,
    /// The operation that each client is at.
    busy: Vec<Option<u64>>,
    /// Operations that were answered, for repeating.
    finished: Vec<Call>,
    /// What any client saw last of a key.
    versions: BTreeMap<Key, u64>,
    /// And the id of that.
    ids: BTreeMap<Key, EntryId>,
    /// What each client was answered since it counts.
    served: Vec<Served>,
    forwards: BTreeMap<u64, Delivery>,
    next_call: u64,
    recorder: Recorder,
    tickets: BTreeMap<u64, Ticket>,
}

impl Clients {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            count,
            calls: BTreeMap::new(),
            busy: vec![None; count],
            finished: Vec::new(),
            versions: BTreeMap::new(),
            ids: BTreeMap::new(),
            served: vec![Served::default(); count],
            forwards: BTreeMap::new(),
            next_call: 0,
            recorder: Recorder::default(),
            tickets: BTreeMap::new(),
        }
    }

    /// What was answered before counts no more.
    pub(crate) fn ask_anew(&mut self) {
        self.served.fill(Served::default());
    }

    /// One who got no write or no linearizable read answered since.
    pub(crate) fn unserved(&self) -> Option<usize> {
        self.served.iter().position(|served| !(served.write && served.linearizable_read))
    }

    /// A refusal serves nobody: a group that orders nothing new gives those, too.
    fn note_reply(&mut self, call: &Call, reply: &Reply) {
        if matches!(reply, Reply::Written { replay: false, .. }) {
            self.note_served(call);
        }
    }

    fn note_served(&mut self, call: &Call) {
        let served = &mut self.served[call.client];
        match call.wish {
            Wish::Write(_) => served.write = true,
            Wish::Read(_, Consistency::Linearizable) => served.linearizable_read = true,
            Wish::Read(_, Consistency::Local) => {}
        }
    }

    pub(crate) fn get(&self, call: u64) -> Option<&Call> {
        self.calls.get(&call)
    }
}

impl World {
    pub(crate) fn start_clients(&mut self) {
        for client in 0..self.clients.count {
            let at_us = self.now_us + self.random.below(50_000);
            self.at(at_us, Event::Client(client));
        }
    }

    /// Begins something, or tries again what is not answered.
    pub(crate) fn client_acts(&mut self, client: usize) {
        let call = match self.clients.busy[client] {
            Some(call) => call,
            None => self.begin_call(client),
        };
        self.attempt(call);
    }

    fn begin_call(&mut self, client: usize) -> u64 {
        self.clients.next_call += 1;
        let number = self.clients.next_call;
        let floor = self.watch.floor();
        let repeated = self.random.percent(4).then(|| self.repeated(client)).flatten();
        let is_open = repeated.is_some();
        let reused = self.random.percent(2).then(|| self.reused(number, client)).flatten();
        let wish = repeated.or(reused).unwrap_or_else(|| self.draw_wish(number, client));
        let min_id = self.draw_min_id(&wish, floor);
        let call = Call { client, wish, floor, min_id, attempt: 0, route: 0, is_open };
        self.record_call(number, &call);
        self.clients.calls.insert(number, call);
        self.clients.busy[client] = Some(number);
        number
    }

    fn attempt(&mut self, number: u64) {
        let node = self.draw_target();
        let route = self.next_number();
        let Some(call) = self.clients.calls.get_mut(&number) else { return };
        assert_eq!(call.route, 0, "one attempt at a time");
        (call.attempt, call.route) = (call.attempt + 1, route);
        let (attempt, wish, min_id) = (call.attempt, call.wish.clone(), call.min_id);
        if attempt > 1 && matches!(call.wish, Wish::Write(_)) {
            self.coverage.count(Reached::RequestRetried);
        }
        let delivery = Delivery { call: number, wish, min_id, attempt, route, node, via: None };
        let (delay_us, patience_us) = (self.random.between(50, 3_000), self.random.between(100_000, 2_000_000));
        self.at(self.now_us + delay_us, Event::Call(delivery));
        self.at(self.now_us + patience_us, Event::CallTimeout(number, attempt));
    }

    fn draw_target(&mut self) -> usize {
        let leader = self.leader().map(|place| place.node);
        let any = self.random.index(self.nodes.len());
        leader.filter(|_| self.random.percent(60)).unwrap_or(any)
    }

    pub(crate) fn timed_out(&mut self, number: u64, attempt: u64) {
        // One that was answered meanwhile is about to be tried again.
        if self.clients.calls.get(&number).is_some_and(|call| call.attempt == attempt && call.route != 0) {
            self.coverage.count(Reached::NoAnswer);
            self.unanswered(number);
        }
    }

    pub(crate) fn answered(&mut self, delivery: Delivery, answer: Answer) {
        let Delivery { call: number, attempt, route, .. } = delivery;
        let Some(call) = self.clients.calls.get(&number) else { return };
        if (call.attempt, call.route) != (attempt, route) {
            return; // the client waits for another answer by now
        }
        self.trace.tell(self.now_us, "client", format_args!("call {number} gets {answer:?}"));
        match answer {
            Answer::Broken => self.unanswered(number),
            Answer::Reply(Reply::Refused(Refusal::OutcomeUnknown)) => {
                self.coverage.count(Reached::OutcomeUnknown);
                self.unanswered(number);
            }
            Answer::NotTaken => self.not_taken(number),
            Answer::Reply(Reply::Refused(refusal)) => {
                if refusal == Refusal::StorageFull {
                    self.coverage.count(Reached::WriteRefusedFull);
                }
                self.not_taken(number);
            }
            Answer::Reply(reply) => {
                let call = call.clone();
                self.watch_reply(&call, &reply);
                self.clients.note_reply(&call, &reply);
                self.record_reply(number, &call, &reply);
                self.remember_version(&call, &reply);
                self.finish(number);
            }
            Answer::Value { found, at } => {
                let call = call.clone();
                self.watch_value(&call, found.as_ref(), at);
                self.clients.note_served(&call);
                if let (Wish::Read(key, _), Some(shown)) = (&call.wish, &found) {
                    self.clients.versions.insert(key.clone(), shown.version);
                    self.clients.ids.insert(key.clone(), shown.id);
                }
                self.record_value(number, found, at);
                self.finish(number);
            }
        }
    }

    /// It may have taken effect. With a request id it can be asked again; without, nobody will ever know.
    fn unanswered(&mut self, number: u64) {
        let Some(call) = self.clients.calls.get_mut(&number) else { return };
        call.is_open = true;
        if call.can_be_repeated() && call.attempt < ATTEMPTS_MAX {
            self.try_again(number);
        } else {
            self.finish(number);
        }
    }

    /// This attempt took no effect, and never will.
    fn not_taken(&mut self, number: u64) {
        let Some(call) = self.clients.calls.get(&number) else { return };
        if call.can_be_repeated() && call.attempt < ATTEMPTS_MAX {
            return self.try_again(number);
        }
        if call.is_open || matches!(call.wish, Wish::Read(..)) {
            return self.finish(number);
        }
        self.watch.took_no_effect(number);
        self.record(number, Outcome::NotExecuted, None);
        self.forget(number);
    }

    fn try_again(&mut self, number: u64) {
        let Some(call) = self.clients.calls.get_mut(&number) else { return };
        call.route = 0; // no late answer counts any more
        let client = call.client;
        let pause_us = self.random.between(5_000, 120_000);
        self.at(self.now_us + pause_us, Event::Client(client));
    }

    fn finish(&mut self, number: u64) {
        let Some(call) = self.clients.calls.get(&number) else { return };
        if call.can_be_repeated() && matches!(call.wish, Wish::Write(_)) {
            self.clients.finished.push(call.clone());
        }
        self.forget(number);
    }

    fn forget(&mut self, number: u64) {
        let Some(Call { client, .. }) = self.clients.calls.remove(&number) else { return };
        self.clients.busy[client] = None;
        let slowness = if self.admin.repairs { 8 } else { 1 };
        let think_us = self.random.between(200, 40_000) * slowness;
        self.at(self.now_us + think_us, Event::Client(client));
    }
}

impl Call {
    fn can_be_repeated(&self) -> bool {
        match &self.wish {
            Wish::Write(command) => command.request.is_some(),
            Wish::Read(..) => true,
        }
    }
}
