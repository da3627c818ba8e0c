//! The search for an order: depth first over the writes that may come next, with dead ends remembered.
//!
//! Calls and returns are a linked list in time. What may come next are the calls before the first return;
//! an operation that is put in order is lifted out of the list, and put back when the search goes back.
//! What leaves the state as it is (a read, a refusal) is put in order as soon as it is true: that forbids
//! nothing that comes later, so the search never has to try it elsewhere. Branches are left only where
//! writes are concurrent and their ids unknown.

use std::collections::HashSet;

use super::Bounds;
use super::register::{KeyHistory, State, Step, Stuck};

/// How a search ended.
pub(super) enum Found {
    Order,
    NoOrder(Stuck),
    Undecided,
}

/// Also returns the steps taken.
pub(super) fn search(history: &KeyHistory<'_>, bounds: &Bounds) -> (Found, u64) {
    let mut search = Search::new(history);
    let found = search.run(bounds);
    (found, search.steps)
}

/// An operation that was put in order, and what to go back to.
struct Frame {
    item: usize,
    before: State,
}

struct Search<'h, 'a> {
    history: &'h KeyHistory<'a>,
    list: List,
    state: State,
    placed: Bits,
    /// Items not in order yet that must be.
    due: usize,
    frames: Vec<Frame>,
    dead_ends: HashSet<(Bits, State)>,
    /// Unknown writes in order, by kind.
    used: Vec<usize>,
    steps: u64,
    longest: Option<Stuck>,
}

impl<'h, 'a> Search<'h, 'a> {
    fn new(history: &'h KeyHistory<'a>) -> Self {
        Self {
            history,
            list: List::new(history),
            state: State::default(),
            placed: Bits::new(history.items.len()),
            due: history.items.iter().filter(|item| item.returned.is_some()).count(),
            frames: Vec::new(),
            dead_ends: HashSet::new(),
            used: vec![0; history.kinds],
            steps: 0,
            longest: None,
        }
    }

    fn run(&mut self, bounds: &Bounds) -> Found {
        let entry_bytes = self.placed.bytes() + size_of::<(Bits, State)>();
        let dead_ends_max = bounds.memory_bytes_max / entry_bytes;
        loop {
            self.settle();
            if self.due == 0 {
                return Found::Order;
            }
            let mut from = self.list.first();
            while let Err(dead_end) = self.place_write(from) {
                self.note(dead_end);
                match self.go_back() {
                    Some(next) => from = next,
                    None => return Found::NoOrder(self.longest.take().expect("a dead end was just noted")),
                }
            }
            if self.steps > bounds.steps_max || self.dead_ends.len() > dead_ends_max {
                return Found::Undecided;
            }
        }
    }

    /// Puts in order all that may come next, is true now and changes nothing.
    fn settle(&mut self) {
        let mut node = self.list.first();
        while let Node::Call(item) = node {
            let mut next = self.list.after_call(item);
            if let Step::Observation(observation) = &self.history.items[item].step
                && self.history.is_true(self.state, observation)
            {
                self.place(item, self.state);
                next = self.list.after_call(item);
            }
            node = next;
        }
    }

    /// Puts the first write from `node` on in order that may be next and leads to nothing known. Err: there
    /// is none before this return.
    fn place_write(&mut self, mut node: Node) -> Result<(), Option<usize>> {
        loop {
            let item = match node {
                Node::Call(item) => item,
                Node::Return(item) => return Err(Some(item)),
                Node::End => return Err(None),
            };
            if let Some(state) = self.try_write(item) {
                self.place(item, state);
                return Ok(());
            }
            node = self.list.after_call(item);
        }
    }

    fn try_write(&mut self, item: usize) -> Option<State> {
        let step = &self.history.items[item].step;
        let Step::Write { rank, .. } = step else { return None };
        self.steps += 1;
        if rank.is_some_and(|(kind, rank)| self.used[kind] != rank) {
            return None;
        }
        let state = self.history.write(self.state, step)?;
        self.dead_ends.insert((self.placed.with(item), state)).then_some(state)
    }

    fn place(&mut self, item: usize, after: State) {
        self.list.lift(item);
        self.placed.flip(item);
        self.due -= usize::from(self.history.items[item].returned.is_some());
        if let Step::Write { rank: Some((kind, _)), .. } = self.history.items[item].step {
            self.used[kind] += 1;
        }
        self.frames.push(Frame { item, before: self.state });
        self.state = after;
    }

    /// Undoes the last write and what was settled after it; the search goes on behind that write.
    fn go_back(&mut self) -> Option<Node> {
        while let Some(Frame { item, before }) = self.frames.pop() {
            self.list.put_back(item);
            self.placed.flip(item);
            self.state = before;
            self.due += usize::from(self.history.items[item].returned.is_some());
            if let Step::Write { rank, .. } = self.history.items[item].step {
                if let Some((kind, _)) = rank {
                    self.used[kind] -= 1;
                }
                return Some(self.list.after_call(item));
            }
        }
        None
    }

    /// Keeps the longest order that was found.
    fn note(&mut self, blocked: Option<usize>) {
        let Some(blocked) = blocked else { return };
        if self.longest.as_ref().is_none_or(|longest| longest.placed.len() < self.frames.len()) {
            let placed = self.frames.iter().map(|frame| frame.item).collect();
            self.longest = Some(Stuck { state: self.state, placed, blocked });
        }
    }
}

/// Calls and returns in time, without those of operations that are in order.
struct List {
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Whether an item has a return.
    returns: Vec<bool>,
}

/// Position 0 is before everything; item n has its call at 2n+1 and its return at 2n+2.
const HEAD: usize = 0;
const END: usize = usize::MAX;

#[derive(Debug, Clone, Copy)]
enum Node {
    Call(usize),
    Return(usize),
    End,
}

impl List {
    fn new(history: &KeyHistory<'_>) -> Self {
        let items = &history.items;
        let mut order: Vec<(u64, usize)> = Vec::with_capacity(items.len() * 2);
        for (n, item) in items.iter().enumerate() {
            order.push((item.invoked, 2 * n + 1));
            order.extend(item.returned.map(|returned| (returned, 2 * n + 2)));
        }
        order.sort_unstable();
        let mut list = Self {
            next: vec![END; items.len() * 2 + 1],
            previous: vec![HEAD; items.len() * 2 + 1],
            returns: items.iter().map(|item| item.returned.is_some()).collect(),
        };
        let mut last = HEAD;
        for (_, position) in order {
            list.next[last] = position;
            list.previous[position] = last;
            last = position;
        }
        list
    }

    fn first(&self) -> Node {
        Self::node(self.next[HEAD])
    }

    /// For a lifted call: what followed when it was lifted.
    fn after_call(&self, item: usize) -> Node {
        Self::node(self.next[2 * item + 1])
    }

    fn node(position: usize) -> Node {
        match position {
            END => Node::End,
            call if call % 2 == 1 => Node::Call(call / 2),
            after => Node::Return(after / 2 - 1),
        }
    }

    /// The return first, so that the call knows what follows it then.
    fn lift(&mut self, item: usize) {
        if self.returns[item] {
            self.unlink(2 * item + 2);
        }
        self.unlink(2 * item + 1);
    }

    /// Undoes the last lift that was not undone.
    fn put_back(&mut self, item: usize) {
        self.link(2 * item + 1);
        if self.returns[item] {
            self.link(2 * item + 2);
        }
    }

    fn unlink(&mut self, position: usize) {
        let (previous, next) = (self.previous[position], self.next[position]);
        self.next[previous] = next;
        if next != END {
            self.previous[next] = previous;
        }
    }

    fn link(&mut self, position: usize) {
        let (previous, next) = (self.previous[position], self.next[position]);
        self.next[previous] = position;
        if next != END {
            self.previous[next] = position;
        }
    }
}

/// A set of items.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Bits(Box<[u64]>);

impl Bits {
    fn new(items: usize) -> Self {
        Self(vec![0; items.div_ceil(64)].into())
    }

    fn bytes(&self) -> usize {
        self.0.len() * 8
    }

    fn flip(&mut self, item: usize) {
        self.0[item / 64] ^= 1 << (item % 64);
    }

    fn with(&self, item: usize) -> Self {
        let mut with = self.clone();
        with.0[item / 64] |= 1 << (item % 64);
        with
    }
}
