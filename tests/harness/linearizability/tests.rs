//! Histories that hold, and histories that do not: one for each promise.

use super::{Bounds, Checked, Failure, check};
use crate::history::{Action, Call, Condition, Entity, Operation, Outcome};

const ANY: Condition = Condition { version: None, entity: Entity::Any };

fn operation(span: (u64, u64), action: Action, outcome: Outcome) -> Operation {
    let call = Call { client: "c".into(), node: "n".into(), key: "k".into(), action, request: None };
    let returned = (outcome != Outcome::Unknown).then_some(span.1);
    Operation { call, invoked: span.0, returned, outcome, kv_id: None }
}

fn put_if(span: (u64, u64), value: &str, condition: Condition, outcome: Outcome) -> Operation {
    operation(span, Action::Put { value: value.to_owned(), condition }, outcome)
}

fn put(span: (u64, u64), value: &str, id: u64, version: u64) -> Operation {
    put_if(span, value, ANY, Outcome::Written { id, version, replay: false })
}

fn lost_put(at: u64, value: &str) -> Operation {
    put_if((at, 0), value, ANY, Outcome::Unknown)
}

fn delete(span: (u64, u64), outcome: Outcome) -> Operation {
    operation(span, Action::Delete { condition: ANY }, outcome)
}

fn deleted(span: (u64, u64), id: u64) -> Operation {
    delete(span, Outcome::Deleted { id, replay: false })
}

fn value(value: &str, id: u64, version: u64) -> Outcome {
    Outcome::Value { value: value.to_owned(), version, id }
}

fn read(span: (u64, u64), outcome: Outcome) -> Operation {
    operation(span, Action::Read { min_id: None }, outcome)
}

fn local_read(span: (u64, u64), outcome: Outcome, kv_id: u64) -> Operation {
    Operation { kv_id: Some(kv_id), ..operation(span, Action::LocalRead { min_id: None }, outcome) }
}

fn request(mut operation: Operation, request: &str) -> Operation {
    operation.call.request = Some(request.to_owned());
    operation
}

fn key(mut operation: Operation, key: &str) -> Operation {
    operation.call.key = key.to_owned();
    operation
}

#[track_caller]
fn holds(operations: &[Operation]) -> Checked {
    check(operations, &Bounds::default()).unwrap_or_else(|failure| panic!("{failure}"))
}

#[track_caller]
fn breaks(operations: &[Operation], with: &str) {
    match check(operations, &Bounds::default()) {
        Err(Failure::Violation(text)) if text.contains(with) => {}
        other => panic!("expected a violation with {with:?}, got {other:?}"),
    }
}

#[test]
fn what_a_store_does_one_by_one_holds() {
    let checked = holds(&[
        put((1, 2), "a", 1, 1),
        read((3, 4), value("a", 1, 1)),
        put_if(
            (5, 6),
            "b",
            Condition { version: Some(1), ..ANY },
            Outcome::Written { id: 2, version: 2, replay: false },
        ),
        put_if((7, 8), "x", Condition { version: Some(1), ..ANY }, Outcome::Conflict { current_version: 2 }),
        put_if((9, 10), "y", Condition { entity: Entity::Is(1), ..ANY }, Outcome::PreconditionFailed),
        deleted((11, 12), 3),
        delete((13, 14), Outcome::NotFound),
        read((15, 16), Outcome::NotFound),
        put((17, 18), "c", 4, 1),
        local_read((19, 20), value("b", 2, 2), 2),
    ]);
    assert_eq!((checked.operations, checked.keys, checked.effects, checked.unknown), (10, 1, 4, 0));
}

#[test]
fn concurrent_answers_hold_in_any_order_that_explains_them() {
    holds(&[
        put((1, 10), "a", 2, 2),
        put((2, 9), "b", 1, 1),
        read((3, 4), value("b", 1, 1)),
        read((5, 6), value("a", 2, 2)),
    ]);
    holds(&[put((1, 10), "a", 1, 1), read((2, 3), Outcome::NotFound), read((4, 5), value("a", 1, 1))]);
}

#[test]
fn a_stale_read_is_found() {
    breaks(
        &[put((1, 2), "a", 1, 1), put((3, 4), "b", 2, 2), read((5, 6), value("a", 1, 1))],
        "cannot be explained:\n  [5..6]",
    );
    breaks(&[put((1, 2), "a", 1, 1), read((3, 4), Outcome::NotFound)], "cannot be explained:\n  [3..4]");
}

#[test]
fn a_value_that_is_seen_and_then_not_is_found() {
    breaks(
        &[put((1, 10), "a", 1, 1), read((2, 3), value("a", 1, 1)), read((4, 5), Outcome::NotFound)],
        "cannot be explained:\n  [4..5]",
    );
}

#[test]
fn a_lost_update_is_found() {
    let on_first = Condition { version: Some(1), ..ANY };
    breaks(
        &[
            put((1, 2), "a", 1, 1),
            put_if((3, 8), "b", on_first, Outcome::Written { id: 2, version: 2, replay: false }),
            put_if((4, 7), "c", on_first, Outcome::Written { id: 3, version: 2, replay: false }),
        ],
        "no order",
    );
    let on_entry = Condition { entity: Entity::Is(1), ..ANY };
    breaks(
        &[
            put((1, 2), "a", 1, 1),
            put((3, 4), "b", 2, 2),
            put_if((5, 6), "c", on_entry, Outcome::Written { id: 3, version: 3, replay: false }),
        ],
        "no order",
    );
}

#[test]
fn a_write_without_effect_on_the_version_is_found() {
    breaks(&[put((1, 2), "a", 1, 1), put((3, 4), "b", 2, 1)], "no order");
}

#[test]
fn a_value_that_vanished_is_found() {
    breaks(&[put((1, 2), "a", 1, 1), read((3, 4), value("a", 1, 1)), read((5, 6), Outcome::NotFound)], "no order");
    breaks(&[lost_put(1, "a"), local_read((2, 3), value("a", 1, 1), 1), read((4, 5), Outcome::NotFound)], "no order");
}

#[test]
fn a_deleted_key_that_comes_back_is_found() {
    breaks(&[put((1, 2), "a", 1, 1), deleted((3, 4), 2), read((5, 6), value("a", 1, 1))], "no order");
    breaks(&[put((1, 2), "a", 1, 1), deleted((3, 4), 2), local_read((5, 6), value("a", 1, 1), 2)], "no order");
    breaks(&[put((1, 2), "a", 1, 1), deleted((3, 4), 2), put((5, 6), "b", 3, 2)], "no order");
}

#[test]
fn a_refusal_that_nothing_explains_is_found() {
    breaks(&[put((1, 2), "a", 1, 1), delete((3, 4), Outcome::NotFound)], "no order");
    breaks(&[put((1, 2), "a", 1, 1), put_if((3, 4), "b", ANY, Outcome::Conflict { current_version: 1 })], "no order");
    let absent = Condition { entity: Entity::Absent, ..ANY };
    breaks(&[put_if((3, 4), "b", absent, Outcome::PreconditionFailed)], "no order");
}

#[test]
fn a_write_of_unknown_outcome_takes_effect_once_at_any_later_time_or_never() {
    let first = put((1, 2), "a", 1, 1);
    holds(&[first.clone(), lost_put(3, "b"), read((4, 5), value("a", 1, 1))]);
    holds(&[first.clone(), lost_put(3, "b"), read((4, 5), value("b", 2, 2))]);
    let late = [lost_put(3, "b"), read((4, 5), value("a", 1, 1)), read((6, 7), value("b", 5, 2))];
    let after_first = |rest: &[Operation]| [std::slice::from_ref(&first), rest].concat();
    holds(&after_first(&late));
    // Nobody saw it, but the version tells.
    holds(&[first.clone(), lost_put(3, "b"), put((4, 5), "c", 3, 3)]);
    breaks(&[first.clone(), lost_put(3, "b"), put((4, 5), "c", 3, 4)], "no order");
    breaks(&[first.clone(), lost_put(7, "b"), put((4, 5), "c", 3, 3)], "no order");
    let twice = [lost_put(3, "b"), put((4, 5), "c", 3, 3), put((6, 7), "d", 4, 5)];
    breaks(&after_first(&twice), "no order");
    holds(&[first.clone(), delete((3, 0), Outcome::Unknown), read((4, 5), value("a", 1, 1))]);
    holds(&[first.clone(), delete((3, 0), Outcome::Unknown), local_read((4, 5), Outcome::NotFound, 2)]);
    breaks(
        &[first, delete((3, 0), Outcome::Unknown), read((4, 5), Outcome::NotFound), read((6, 7), value("a", 1, 1))],
        "no order",
    );
}

#[test]
fn a_refused_or_unsent_write_has_no_effect() {
    let unsent = put_if((1, 2), "a", ANY, Outcome::NotExecuted);
    holds(&[unsent.clone(), read((3, 4), Outcome::NotFound)]);
    breaks(&[unsent, read((3, 4), value("a", 1, 1))], "nobody wrote");
    breaks(&[read((3, 4), value("a", 1, 1)), put((5, 6), "a", 1, 1)], "before it was written");
}

#[test]
fn ids_are_unique_and_rise_with_time_over_all_keys() {
    let other = |operation| key(operation, "other");
    holds(&[put((1, 4), "a", 2, 1), other(put((2, 3), "b", 1, 1))]);
    breaks(&[put((1, 2), "a", 7, 1), other(put((3, 4), "b", 7, 1))], "two writes with id 7");
    breaks(&[put((1, 2), "a", 7, 1), other(put((3, 4), "b", 6, 1))], "7 was shown, then 6 came");
    // What a read has shown is committed.
    let reader = local_read((1, 2), Outcome::NotFound, 9);
    breaks(&[reader.clone(), other(put((3, 4), "b", 9, 1))], "9 was shown, then 9 came");
    holds(&[reader.clone(), other(put((3, 4), "b", 10, 1))]);
    let late = Operation { kv_id: Some(8), ..read((3, 4), Outcome::NotFound) };
    breaks(&[reader, other(late)], "9 was shown, then 8 came");
}

#[test]
fn a_read_is_not_ahead_of_its_id_and_shows_a_prefix() {
    let writes = [put((1, 2), "a", 1, 1), put((3, 4), "b", 3, 2), put((5, 6), "c", 5, 3)];
    let with = |read| [&writes[..], &[read]].concat();
    for (shown, kv_id) in [(value("a", 1, 1), 1), (value("a", 1, 1), 2), (value("b", 3, 2), 4), (value("c", 5, 3), 9)] {
        holds(&with(local_read((7, 8), shown, kv_id)));
    }
    breaks(&with(local_read((7, 8), value("b", 3, 2), 2)), "below what is shown");
    breaks(&with(local_read((7, 8), value("a", 1, 1), 3)), "no order");
    breaks(&with(local_read((7, 8), Outcome::NotFound, 3)), "no order");
    holds(&with(local_read((7, 8), Outcome::NotFound, 0)));
    let asked = operation((7, 8), Action::LocalRead { min_id: Some(5) }, value("b", 3, 2));
    breaks(&with(Operation { kv_id: Some(4), ..asked }), "asked for");
}

#[test]
fn one_entry_has_one_content() {
    breaks(&[put((1, 2), "a", 1, 1), read((3, 4), value("a", 2, 1))], "one write, two results");
    breaks(&[put((1, 2), "a", 1, 1), read((3, 4), value("a", 1, 2))], "one write, two results");
}

#[test]
fn copies_of_a_request_have_one_effect_and_one_answer() {
    let first = request(lost_put(1, "a"), "r");
    let replay = |id| put_if((5, 6), "a", ANY, Outcome::Written { id, version: 1, replay: true });
    let copy = request(replay(1), "r");
    holds(&[first, key(put((2, 4), "b", 2, 1), "other"), copy.clone()]);
    let fresh = request(put((7, 8), "a", 1, 1), "r");
    holds(&[copy, fresh.clone()]);
    breaks(&[fresh.clone(), request(put((9, 10), "a", 1, 1), "r")], "two copies of a request are the first");
    breaks(&[fresh, request(put((9, 10), "a", 2, 2), "r")], "one write, two results");
    let once = Condition { version: Some(0), ..ANY };
    let first = request(put_if((1, 2), "a", once, Outcome::Written { id: 1, version: 1, replay: false }), "r");
    let refused = request(put_if((3, 4), "a", once, Outcome::Conflict { current_version: 1 }), "r");
    breaks(&[first, refused], "refused after it had taken effect");
}

#[test]
fn a_double_effect_of_one_request_is_found() {
    let copies = [request(lost_put(1, "a"), "r"), request(lost_put(2, "a"), "r")];
    let holding = [put((3, 4), "b", 2, 2), put((5, 6), "c", 3, 3)];
    holds(&[&copies[..], &holding[..]].concat());
    let twice = [put((3, 4), "b", 2, 2), put((5, 6), "c", 4, 4)];
    breaks(&[&copies[..], &twice[..]].concat(), "no order");
}

#[test]
fn a_history_that_cannot_be_judged_is_not_called_good() {
    let twice = [put((1, 2), "a", 1, 1), put((3, 4), "a", 2, 2)];
    assert!(matches!(check(&twice, &Bounds::default()), Err(Failure::Unusable(_))));
    let misplaced = [read((1, 2), Outcome::Deleted { id: 1, replay: false })];
    assert!(matches!(check(&misplaced, &Bounds::default()), Err(Failure::Unusable(_))));
}

#[test]
fn a_search_that_is_too_wide_is_undecided() {
    // Twelve unknown writes, each on another condition, and a version that none of them can explain.
    let unknown = (0..12).map(|n| {
        let condition = Condition { entity: Entity::Is(1000 + n), ..ANY };
        put_if((2 + n, 0), &format!("u{n}"), condition, Outcome::Unknown)
    });
    let mut operations = vec![lost_put(1, "x")];
    operations.extend(unknown);
    operations.push(put((20, 21), "b", 7, 20));
    let bounds = Bounds { steps_max: 1000, ..Bounds::default() };
    assert!(matches!(check(&operations, &bounds), Err(Failure::Undecided { .. })));
    breaks(&operations, "no order");
}

#[test]
fn many_unknown_writes_of_one_kind_are_no_burden() {
    let mut operations: Vec<Operation> = (1..=200).map(|n| lost_put(n, &format!("u{n}"))).collect();
    operations.push(put((201, 202), "b", 500, 101));
    assert!(holds(&operations).steps < 100_000);
}
