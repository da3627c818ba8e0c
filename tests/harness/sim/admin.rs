//! The administrator: founds the group, adds and removes members, moves leadership, changes settings, and
//! gets it wrong: orders come late, twice, and to nodes they were not meant for. After the faults he puts
//! right what a person or the operator would.

use kv_core::contract::{Input, Refusal, Reply, Request, SettingsChange, Token};
use kv_core::entry::EntryId;
use kv_core::group::{ClusterId, MemberId, MemberInfo};

use super::Profile;
use super::coverage::Reached;
use super::node::{Happening, Place};
use super::shape::Emphasis;
use super::targets::{FAR, Judged, another_cluster};
use super::world::{Event, Waiter, World};

/// What an order is for, to know what its answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Bootstrap,
    /// With another body or target, of a node that is founded.
    BootstrapWrongly,
    Learner,
    /// A learner under the name of a voter whose volume is gone.
    Replacement,
    Voter,
    Remove,
    Lead,
    LeadWrongly,
    /// A learner under the name of this voter.
    TakeName(MemberId),
    HandOver,
    /// By the node itself, which has found damage.
    StepDown,
    Settings,
    Tune,
    /// With a time-out that no interval fits into.
    TuneWrongly,
    /// The majority is lost.
    Recover,
    /// Decided on something else.
    RecoverWrongly,
    /// While a leader is there.
    RecoverNeedlessly,
}

impl Order {
    pub(crate) fn changes_voters(self) -> bool {
        matches!(self, Self::Voter | Self::Remove)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Admin {
    founders: Vec<MemberInfo>,
    founded: Vec<bool>,
    /// Told to lead once, at the beginning.
    has_led: bool,
    /// Sent before, and perhaps sent again.
    sent: Vec<(usize, Order, Request)>,
    pub(crate) judged: Judged,
    /// True: nothing is asked for but what makes the group whole.
    pub(crate) repairs: bool,
}

/// Orders remembered for sending them again.
const SENT_MAX: usize = 20;

impl World {
    pub(crate) fn administer(&mut self) {
        let is_hasty = self.shape.emphasis == Emphasis::Storms && self.leader().is_some();
        let again_us_max = if is_hasty { 150_000 } else { 500_000 };
        let again_us = self.random.between(30_000, again_us_max);
        self.at(self.now_us + again_us, Event::Admin);
        if self.admin.founders.is_empty() {
            self.choose_founders();
        } else if self.admin.founded.iter().any(|done| !done) {
            self.found();
        } else {
            self.work();
        }
        self.admin.has_led |= self.leader().is_some();
        if self.shape.is_manual || !self.admin.has_led {
            self.assign_leader();
        }
    }

    fn work(&mut self) {
        self.administer_recovery();
        self.administer_tuning();
        if self.admin.repairs {
            self.repair();
        } else {
            self.meddle();
        }
    }

    pub(crate) fn cluster_id() -> ClusterId {
        ClusterId::new("sim").expect("a legal name")
    }

    fn choose_founders(&mut self) {
        let voters = self.shape.voters;
        let infos: Vec<MemberInfo> = (0..voters).filter_map(|index| self.info(index)).collect();
        if infos.len() == voters {
            self.admin.founded = vec![false; voters];
            self.watch.founded(infos.iter().map(|info| info.member_id).collect());
            self.admin.founders = infos;
        }
    }

    fn info(&self, index: usize) -> Option<MemberInfo> {
        let node = &self.nodes[index];
        let member_id = node.process.as_ref()?.member;
        Some(MemberInfo { name: node.name.clone(), member_id, peer_url: node.name.to_string() })
    }

    /// Each founder gets the same body, until each has answered.
    fn found(&mut self) {
        for index in 0..self.admin.founded.len() {
            let is_due = !self.admin.founded[index] || self.random.percent(30);
            if is_due && self.random.percent(80) {
                let body = self.bootstrap_body(index);
                self.order(index, Order::Bootstrap, body);
            }
        }
    }

    fn bootstrap_body(&mut self, index: usize) -> Request {
        let seen = self.info(index).map(|info| info.member_id);
        Request::Bootstrap {
            target_member_id: seen.filter(|_| self.random.percent(60)),
            if_config_id: self.random.percent(60).then_some(EntryId::ZERO),
            cluster_id: Self::cluster_id(),
            voters: self.admin.founders.clone(),
            settings: self.shape.settings,
        }
    }

    fn bootstrap_wrongly(&mut self, index: usize) {
        if !self.nodes[index].volume.ledger.is_member {
            return;
        }
        let mut body = self.bootstrap_body(index);
        if let Request::Bootstrap { target_member_id, if_config_id, cluster_id, .. } = &mut body {
            match self.random.below(3) {
                0 => *target_member_id = Some(MemberId(1)),
                1 => *if_config_id = Some(EntryId(FAR)),
                _ => *cluster_id = another_cluster(),
            }
        }
        self.order_once(index, Order::BootstrapWrongly, body);
    }

    /// Without failover of its own a group is led by whom it is told to.
    fn assign_leader(&mut self) {
        if self.leader().is_some() || self.admin.founders.is_empty() {
            return;
        }
        let best = self.processes().filter(|process| process.replica.view(self.clock_of(process.place)).serves);
        let best = best.max_by_key(|process| process.replica.positions().0).map(|process| process.place.node);
        if let Some(index) = best {
            let index = if self.random.percent(70) { index } else { self.random.index(self.nodes.len()) };
            self.order(index, Order::Lead, Request::Lead { target: None });
        }
    }

    fn meddle(&mut self) {
        let index = self.random.index(self.nodes.len());
        let leader = self.leader().map_or(index, |place| place.node);
        if self.shape.emphasis == Emphasis::Storms && self.random.percent(60) {
            return self.order(index, Order::Lead, Request::Lead { target: None });
        }
        if self.has_copy() {
            return self.meddle_with_leadership(leader, index);
        }
        match self.random.below(20) {
            0..4 => self.register_strangers(30),
            4..7 => {
                self.add(leader, index, Order::Voter);
                self.promote_another_soon();
            }
            7..9 => self.remove(leader, index),
            9..11 => self.order(index, Order::Lead, Request::Lead { target: None }),
            11 if self.random.percent(40) => self.bootstrap_wrongly(index),
            11 => self.lead_by_target(index),
            12 => self.lead_wrongly(index),
            13 => self.order(leader, Order::HandOver, Request::HandOver),
            14..16 => self.change_settings(leader),
            16 => self.add(index, leader, Order::Learner),
            17..19 => self.send_again(),
            _ if self.profile == Profile::Tight => self.take_name(leader, index),
            _ => {}
        }
        self.watch_hand_overs();
    }

    /// The group's voters stay who they are.
    fn meddle_with_leadership(&mut self, leader: usize, index: usize) {
        match self.random.below(6) {
            0..2 => self.order(index, Order::Lead, Request::Lead { target: None }),
            2 => self.lead_by_target(index),
            3 => self.lead_wrongly(index),
            4 if !self.has_copy_among_odd() => self.order(leader, Order::HandOver, Request::HandOver),
            _ => self.change_settings(leader),
        }
        self.watch_hand_overs();
    }

    /// While the change before may still be under way.
    fn promote_another_soon(&mut self) {
        if self.profile == Profile::Tight {
            self.register_strangers(100);
            let another = self.random.index(self.nodes.len());
            let delay_us = self.random.between(300, 6_000);
            self.at(self.now_us + delay_us, Event::Promote(another));
        }
    }

    pub(crate) fn promote(&mut self, index: usize) {
        if let Some(leader) = self.leader().filter(|_| !self.has_copy()) {
            self.add(leader.node, index, Order::Voter);
        }
    }

    fn take_name(&mut self, leader: usize, index: usize) {
        let Some(info) = self.info(index) else { return };
        let order = Order::TakeName(info.member_id);
        let member = MemberInfo { member_id: MemberId(self.random.draw() | 1), ..info };
        self.order(leader, order, Request::AddMember { target: None, member, voter: false });
    }

    /// As `kv_node::bootstrap::following`: whoever is not of the group registers with its leader.
    fn register_strangers(&mut self, percent: u64) {
        let Some(leader) = self.leader() else { return };
        for index in 0..self.nodes.len() {
            let is_stranger = self.info(index).is_some_and(|info| !self.is_voter(leader, info.member_id));
            if is_stranger && !self.is_former_member(index) && self.random.percent(percent) {
                self.add(leader.node, index, Order::Learner);
            }
        }
    }

    fn repair(&mut self) {
        self.register_strangers(100);
    }

    pub(crate) fn add(&mut self, at: usize, index: usize, order: Order) {
        let Some(member) = self.info(index) else { return };
        let leader = self.nodes[at].process.as_ref();
        let replaces = leader.is_some_and(|leader| {
            let now = self.clock_of(leader.place);
            let known = leader.replica.status(now).members;
            known.iter().any(|m| m.voter && m.name == member.name && m.member_id != member.member_id)
        });
        let order = if replaces && order == Order::Learner { Order::Replacement } else { order };
        let voter = order == Order::Voter;
        let target = self.order_target(at);
        self.order(at, order, Request::AddMember { target, member, voter });
    }

    fn remove(&mut self, at: usize, index: usize) {
        let Some(member_id) = self.info(index).map(|info| info.member_id) else { return };
        let target = self.order_target(at);
        self.order(at, Order::Remove, Request::RemoveMember { target, member_id });
    }

    fn lead_by_target(&mut self, index: usize) {
        let target = self.decided_on(index).map(|(target, _)| target);
        self.order(index, Order::Lead, Request::Lead { target });
    }

    fn lead_wrongly(&mut self, index: usize) {
        let Some((right, _)) = self.decided_on(index) else { return };
        let target = Some(self.wrong(right));
        self.order(index, Order::LeadWrongly, Request::Lead { target });
    }

    fn change_settings(&mut self, leader: usize) {
        let forgets = self.shape.forgets_requests;
        let settings = SettingsChange {
            history_limit: self.random.percent(60).then(|| u32::try_from(self.random.below(6)).expect("small")),
            dedup_expiry_seconds: (forgets && self.random.percent(20)).then(|| self.random.between(1, 60)),
            dedup_limit: (forgets && self.random.percent(30)).then(|| self.random.between(3, 60)),
        };
        let target = self.order_target(leader);
        self.order(leader, Order::Settings, Request::ChangeSettings { target, settings });
    }

    /// Late, and perhaps to somebody else.
    fn send_again(&mut self) {
        let len = self.admin.sent.len();
        if len > 0 {
            let (index, order, request) = self.admin.sent[self.random.index(len)].clone();
            let index = if self.random.percent(70) { index } else { self.random.index(self.nodes.len()) };
            self.order(index, order, request);
        }
    }

    fn order(&mut self, index: usize, order: Order, request: Request) {
        if order.changes_voters() && self.processes().any(|process| process.rot.is_some()) {
            return; // the voters that there are can do without it: no others are asked for
        }
        if self.admin.sent.len() < SENT_MAX {
            self.admin.sent.push((index, order, request.clone()));
        } else {
            let at = self.random.index(SENT_MAX);
            self.admin.sent[at] = (index, order, request.clone());
        }
        self.order_once(index, order, request);
    }

    /// It does not come again later.
    pub(crate) fn order_once(&mut self, index: usize, order: Order, request: Request) {
        let token = Token(self.next_number());
        let Some(process) = self.nodes[index].process.as_mut() else { return };
        let place = process.place;
        process.waiting.insert(token, Waiter::Admin(order));
        self.tell(index, format_args!("is told: {order:?}"));
        self.arrives(place, Happening::Step(Input::Request { token, request }));
    }

    pub(crate) fn replied_to_admin(&mut self, place: Place, order: Order, reply: &Reply) {
        self.tell(place.node, format_args!("answers {order:?}: {reply:?}"));
        let reached = match (order, reply) {
            (Order::StepDown, _) => return self.stepped_down(place),
            (Order::Tune | Order::TuneWrongly, reply) => return self.replied_to_tuning(place, order, reply),
            (Order::Recover | Order::RecoverWrongly | Order::RecoverNeedlessly, reply) => {
                return self.replied_to_recovery(place, order, reply);
            }
            // A founder that has lost its volume since is added like anybody else.
            (Order::Bootstrap, Reply::Done { .. } | Reply::Refused(Refusal::Invalid(_))) => {
                let is_done = matches!(reply, Reply::Done { .. });
                assert!(!is_done || self.nodes[place.node].volume.ledger.is_member, "is founded, but not on its disk");
                return self.is_founded(place.node);
            }
            (Order::BootstrapWrongly, reply) => {
                // One that was founded and lost its volume is not named in the body.
                let refused = matches!(reply, Reply::Refused(Refusal::IdentityMismatch { .. } | Refusal::Invalid(_)));
                assert!(refused, "a bootstrap that is not its own was not refused: {reply:?}");
                Reached::BootstrapMismatched
            }
            (Order::Learner, Reply::Done { .. }) => Reached::LearnerAdded,
            (Order::Replacement, Reply::Done { .. }) => Reached::ReplacementByOperator,
            (Order::Voter, Reply::Done { .. }) => Reached::VoterAdded,
            (Order::Remove, Reply::Done { .. }) => Reached::VoterRemoved,
            (Order::Lead, Reply::Refused(Refusal::Behind { .. })) => Reached::BehindRefused,
            (Order::HandOver, reply) => {
                // It is the last that a process does, and nothing is handed to it any more.
                self.at(self.now_us, Event::End(place));
                if !matches!(reply, Reply::Refused(Refusal::Conflict(_))) {
                    return;
                }
                Reached::TransferTimedOut
            }
            (Order::Settings, Reply::Done { .. }) => Reached::SettingsChanged,
            _ => return,
        };
        self.coverage.count(reached);
    }

    fn is_founded(&mut self, index: usize) {
        let Some(done) = self.admin.founded.get_mut(index) else { return };
        if std::mem::replace(done, true) {
            self.coverage.count(Reached::BootstrapRepeated);
        }
    }
}
