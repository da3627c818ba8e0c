//! Frames: what goes in comes out, and nothing else is ever believed.

use kv_core::command::{Key, Precondition, Value};
use kv_core::entry::{Body, Control};
use kv_core::group::{FeatureLevel, MemberId};
use kv_core::message::{
    Accepted, AppendAck, AppendResult, Baseline, Heartbeat, Lead, VoteKind, VoteReply, VoteRequest, VotersAt,
};
use proptest::prelude::*;

use super::*;
use crate::transport::tests::hello;

pub(crate) fn entry(id: u64, value: &str) -> Entry {
    let body = Body::Set {
        key: Key::new("key").expect("test key"),
        value: Value::from_json(value.as_bytes(), VALUE_BYTES_CEILING).expect("test value"),
        version: 1,
        precondition: Precondition::default(),
        request: None,
    };
    Entry::encode(EntryId(id), Epoch(3), None, body)
}

fn position(epoch: u64, id: u64) -> LogPosition {
    LogPosition { epoch: Epoch(epoch), id: EntryId(id) }
}

pub(crate) fn append(entries: Vec<Entry>) -> Append {
    Append { epoch: Epoch(3), round: Round(9), prev: position(2, 6), committed: EntryId(5), entries }
}

/// One of each kind of message.
pub(crate) fn all_messages() -> Vec<Message> {
    let (epoch, round, last) = (Epoch(3), Round(9), position(2, 6));
    let baseline = Baseline { promise: Epoch(2), durable: last };
    let control = Entry::encode(EntryId(8), epoch, Some(1), Body::Control(Control::Epoch { leader: MemberId(7) }));
    vec![
        Message::Heartbeat(Heartbeat {
            epoch,
            lead: Some(Lead { round, committed: EntryId(4) }),
            leader: Some(MemberId(u64::MAX)),
            last: EntryId(u64::MAX >> 1),
            durable: EntryId(2),
            applied: EntryId(1),
            storage_full: true,
            unfit: false,
            leaving: true,
            feature_level: FeatureLevel(1),
        }),
        Message::HeartbeatAck { epoch, round },
        Message::Append(append(vec![entry(7, "\"x\""), control])),
        Message::Append(append(vec![])),
        Message::AppendAck(AppendAck {
            epoch,
            round,
            result: AppendResult::Mismatch { rejected: EntryId(6), hint: last },
            storage_full: false,
            unfit: true,
        }),
        Message::AppendAck(AppendAck {
            epoch,
            round,
            result: AppendResult::NeedSnapshot,
            storage_full: false,
            unfit: false,
        }),
        Message::VoteRequest(VoteRequest { epoch, kind: VoteKind::Directed, last, start_id: 3 }),
        Message::VoteReply(VoteReply { epoch, kind: VoteKind::Pre, granted: true, last, start_id: 3 }),
        Message::TransferRequest { epoch },
        Message::TimeoutNow { epoch },
        Message::NotAMember { config_id: EntryId(3) },
        Message::Accepted(Accepted { incarnation: 12, start_id: u64::MAX, voters: None }),
        Message::Accepted(Accepted {
            incarnation: 12,
            start_id: 1,
            voters: Some(VotersAt { config_id: EntryId(7), member_ids: vec![MemberId(1), MemberId(u64::MAX)] }),
        }),
        Message::Stale { seen: Seen { incarnation: 4, ..Seen::default() }, reason: "a \"copied\"\nvolume".into() },
        Message::Show { hello: Box::new(hello(5, Some("c"))), answer: true },
        Message::Show { hello: Box::new(Hello { baseline: Some(baseline), ..hello(6, None) }), answer: false },
        Message::RefillRequest { epoch, number: u64::MAX },
        Message::RefillAnswer { epoch, number: 1, until: EntryId(9) },
        Message::LinesRequest { first: EntryId(2), last: EntryId(4) },
        Message::Lines {
            first: EntryId(2),
            last: EntryId(4),
            compacted: EntryId(1),
            entries: vec![entry(3, "[1,{}]")],
        },
    ]
}

/// The payloads in a buffer of whole frames.
fn payloads(mut buffer: BytesMut) -> Vec<Bytes> {
    let mut codec = codec();
    let mut found = Vec::new();
    while let Some(frame) =
        tokio_util::codec::Decoder::decode(&mut codec, &mut buffer).expect("frames within the limit")
    {
        found.push(frame.freeze());
    }
    assert!(buffer.is_empty(), "bytes behind the last frame");
    found
}

fn encoded(message: &Message) -> Vec<Bytes> {
    let mut buffer = BytesMut::new();
    let count = encode(message, &mut buffer).expect("fits");
    let payloads = payloads(buffer);
    assert_eq!(payloads.len() as u64, count);
    payloads
}

#[test]
fn every_message_comes_back_as_it_went() {
    for message in all_messages() {
        let payloads = encoded(&message);
        assert_eq!(payloads.len(), 1);
        assert_eq!(decode(payloads[0].clone()), Ok(message));
    }
}

#[test]
fn an_append_can_be_read_in_a_packet_dump() {
    let payload = &encoded(&Message::Append(append(vec![entry(7, "1")])))[0];
    let text = std::str::from_utf8(payload).expect("text");
    let (header, line) = text.split_once('\n').expect("a header and a line");
    assert_eq!(header, r#"A9dac11f8{"epoch":3,"round":9,"prev":{"epoch":2,"id":6},"committed":5}"#);
    assert_eq!(line.as_bytes(), entry(7, "1").line);
}

#[test]
fn an_append_over_the_frame_size_becomes_several_that_continue_each_other() {
    let value = format!("\"{}\"", "v".repeat(FRAME_LINES_BYTES / 3));
    let entries: Vec<_> = (7..14).map(|id| entry(id, &value)).collect();
    let frames = encoded(&Message::Append(append(entries.clone())));
    assert!(frames.len() >= 3, "{} frames", frames.len());
    let (mut prev, mut seen) = (position(2, 6), Vec::new());
    for frame in frames {
        let Ok(Message::Append(part)) = decode(frame) else { panic!("not an append") };
        assert_eq!((part.epoch, part.round, part.prev, part.committed), (Epoch(3), Round(9), prev, EntryId(5)));
        prev = part.entries.last().expect("no empty part").position();
        seen.extend(part.entries);
    }
    assert_eq!(seen, entries);
}

#[test]
fn lines_over_the_frame_size_divide_their_range_without_a_gap() {
    let value = format!("\"{}\"", "v".repeat(FRAME_LINES_BYTES / 2));
    let entries: Vec<_> = [3, 5, 9].map(|id| entry(id, &value)).into();
    let (mut expected_first, mut seen) = (EntryId(2), Vec::new());
    for frame in encoded(&Message::Lines {
        first: EntryId(2),
        last: EntryId(12),
        compacted: EntryId(0),
        entries: entries.clone(),
    }) {
        let Ok(Message::Lines { first, last, compacted: _, entries }) = decode(frame) else { panic!("not lines") };
        assert_eq!(first, expected_first);
        expected_first = last.next();
        seen.extend(entries);
    }
    assert_eq!((expected_first, seen), (EntryId(13), entries));
}

#[test]
fn the_largest_value_fits_one_frame_and_a_larger_line_is_refused_whole() {
    let value = format!("\"{}\"", "v".repeat(VALUE_BYTES_CEILING - 2));
    let largest = entry(7, &value);
    assert_eq!(encoded(&Message::Append(append(vec![entry(6, "1"), largest.clone()]))).len(), 2);

    let mut line = largest.line.to_vec();
    line.resize(FRAME_BYTES_MAX, b' ');
    let too_large = Entry { line: line.into(), ..largest };
    let mut buffer = BytesMut::from(&b"before"[..]);
    let refused = encode(&Message::Append(append(vec![entry(6, "1"), too_large])), &mut buffer);
    assert_eq!(refused, Err(FrameError::TooLarge));
    assert_eq!(buffer, b"before"[..]);
}

#[test]
fn a_frame_over_the_limit_is_refused_by_its_length_alone() {
    let length = u32::try_from(FRAME_BYTES_MAX + 1).expect("fits").to_be_bytes();
    let mut buffer = BytesMut::from(&length[..]);
    let capacity = buffer.capacity();
    assert!(tokio_util::codec::Decoder::decode(&mut codec(), &mut buffer).is_err());
    assert_eq!(buffer.capacity(), capacity);
}

#[test]
fn a_damaged_line_spoils_the_frame_and_names_its_place() {
    let mut payload = encoded(&Message::Append(append(vec![entry(7, "1"), entry(8, "\"abc\"")])))[0].to_vec();
    let at = payload.windows(3).position(|w| w == b"abc").expect("the value");
    payload[at] ^= 1;
    let error = decode(payload.into()).expect_err("damaged");
    assert!(matches!(&error, FrameError::Line { index: 1, error } if error.is_damage()), "{error:?}");
}

/// A payload as a peer would seal it.
fn sealed(kind: char, header: &str) -> Vec<u8> {
    format!("{kind}{:08x}{header}", checksum(kind as u8, header.as_bytes())).into()
}

#[test]
fn what_is_no_message_is_refused_by_name() {
    for (payload, expected) in [
        (vec![], FrameError::Empty),
        (b"?00000000{}".into(), FrameError::UnknownType(b'?')),
        (b"\n".into(), FrameError::UnknownType(b'\n')),
        (b"GET / HTTP/1.1\r\n".into(), FrameError::UnknownType(b'G')),
        (b"H".into(), FrameError::Checksum('H')),
        (b"T00000000{\"epoch\":1}".into(), FrameError::Checksum('T')),
        (sealed('H', "{}"), FrameError::Header('H')),
        (sealed('T', "{\"epoch\":-1}"), FrameError::Header('T')),
        ([sealed('T', "{\"epoch\":1}"), b"\n{}".into()].concat(), FrameError::UnexpectedLines('T')),
        (sealed('H', &"[".repeat(1 << 20)), FrameError::Header('H')),
    ] {
        assert_eq!(decode(payload.into()), Err(expected));
    }
}

/// A release without numbers sends, and reads, headers without one.
#[test]
fn a_refill_is_asked_for_and_answered_across_releases() {
    let until = EntryId(9);
    let request = sealed('R', r#"{"epoch":3}"#);
    assert_eq!(decode(request.into()), Ok(Message::RefillRequest { epoch: Epoch(3), number: 0 }));
    let answer = sealed('r', r#"{"epoch":3,"until":9}"#);
    assert_eq!(decode(answer.into()), Ok(Message::RefillAnswer { epoch: Epoch(3), number: 0, until }));
}

/// A release without start ids in votes sends, and reads, headers without one.
#[test]
fn votes_are_asked_for_and_given_across_releases() {
    let (epoch, kind, last) = (Epoch(3), VoteKind::Directed, LogPosition { epoch: Epoch(2), id: EntryId(9) });
    let request = sealed('V', r#"{"epoch":3,"kind":"directed","last":{"epoch":2,"id":9}}"#);
    assert_eq!(decode(request.into()), Ok(Message::VoteRequest(VoteRequest { epoch, kind, last, start_id: 0 })));
    let reply = sealed('v', r#"{"epoch":3,"kind":"directed","granted":true,"last":{"epoch":2,"id":9}}"#);
    let expected = Message::VoteReply(VoteReply { epoch, kind, granted: true, last, start_id: 0 });
    assert_eq!(decode(reply.into()), Ok(expected));
}

/// A release that didn't say which start it accepts says so of any; one that didn't say who votes says nothing of that.
#[test]
fn an_acceptance_is_read_across_releases() {
    let accepted = sealed('C', r#"{"incarnation":4}"#);
    assert_eq!(decode(accepted.into()), Ok(Message::Accepted(Accepted { incarnation: 4, start_id: 0, voters: None })));
}

fn any_append() -> impl Strategy<Value = Append> {
    let values = proptest::collection::vec("[a-z\\\\\"\u{e9}]{0,40}", 0..20);
    (0..u64::MAX >> 1, any::<u64>(), 0..u64::MAX >> 1, 1..(u64::MAX >> 1) - 100, values).prop_map(
        |(epoch, round, committed, first, values)| Append {
            epoch: Epoch(epoch),
            round: Round(round),
            prev: position(epoch, first - 1),
            committed: EntryId(committed),
            entries: (first..)
                .zip(values)
                .map(|(id, v)| entry(id, &serde_json::to_string(&v).expect("a string")))
                .collect(),
        },
    )
}

proptest! {
    #[test]
    fn any_append_comes_back_as_it_went(append in any_append()) {
        let message = Message::Append(append);
        prop_assert_eq!(decode(encoded(&message)[0].clone()), Ok(message));
    }

    #[test]
    fn arbitrary_bytes_never_panic(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(payload.into());
    }

    #[test]
    fn arbitrary_text_under_a_right_checksum_never_panics(
        kind in "[HhAaVvTtNCSWRrLl]", header in "[{}\\[\\]\",:a-z0-9]{0,60}", rest in "[{}\",:a-z0-9\n]{0,200}",
    ) {
        let payload = [sealed(kind.chars().next().expect("one letter"), &header), b"\n".into(), rest.into()].concat();
        let _ = decode(payload.into());
    }

    #[test]
    fn a_flipped_bit_is_never_believed(append in any_append(), at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let mut payload = encoded(&Message::Append(append))[0].to_vec();
        let at = at.index(payload.len());
        payload[at] ^= 1_u8 << bit;
        prop_assert!(decode(payload.into()).is_err());
    }
}
