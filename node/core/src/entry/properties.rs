//! The line encoding under arbitrary contents and arbitrary damage.

use proptest::prelude::*;

use super::*;
use crate::command::KEY_BYTES_MAX;
use crate::sessions::SessionRecord;

/// Texts that JSON must escape stand beside arbitrary ones.
pub(crate) fn text(bytes_max: usize) -> impl Strategy<Value = String> {
    let awkward =
        prop_oneof![Just("\",\"crc\":"), Just("\\"), Just("\"}"), Just("\u{0}\n"), Just("\u{1F600}"), Just("ü")];
    let plain = "[a-z0-9/]{1,12}";
    let part =
        prop_oneof![awkward.prop_map(str::to_owned), plain.prop_map(|s| s), any::<char>().prop_map(String::from)];
    prop::collection::vec(part, 1..8).prop_map(move |parts| {
        let mut text = parts.concat();
        while text.len() > bytes_max {
            text.pop();
        }
        text
    })
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let number = prop_oneof![any::<i64>().prop_map(Into::into), any::<f64>().prop_map(Into::into)];
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        number,
        text(200).prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let list = prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into);
        let object = prop::collection::btree_map(text(30), inner, 0..4)
            .prop_map(|members| serde_json::Value::Object(members.into_iter().collect()));
        prop_oneof![list, object]
    })
}

fn value() -> impl Strategy<Value = Value> {
    json().prop_map(|json| Value::from_json(json.to_string().as_bytes(), 1 << 20).unwrap())
}

fn key() -> impl Strategy<Value = Key> {
    prop_oneof![text(KEY_BYTES_MAX), Just("k".repeat(KEY_BYTES_MAX))].prop_map(|text| Key::new(&text).unwrap())
}

fn request() -> impl Strategy<Value = RequestId> {
    (text(256), text(256)).prop_map(|(client, request)| RequestId::new(&client, &request).unwrap())
}

fn counter() -> impl Strategy<Value = u64> {
    0..=COUNTER_MAX
}

fn precondition() -> impl Strategy<Value = Precondition> {
    let entity = prop_oneof![
        Just(Entity::Any),
        any::<u64>().prop_map(|id| Entity::Is(EntryId(id))),
        Just(Entity::Present),
        Just(Entity::Absent),
    ];
    (any::<Option<u64>>(), entity).prop_map(|(version, entity)| Precondition { version, entity })
}

fn body() -> impl Strategy<Value = Body> {
    let set = (key(), value(), counter(), precondition(), prop::option::of(request())).prop_map(
        |(key, value, version, precondition, request)| Body::Set { key, value, version, precondition, request },
    );
    let delete = (key(), precondition(), prop::option::of(request()))
        .prop_map(|(key, precondition, request)| Body::Delete { key, precondition, request });
    let control = prop_oneof![
        any::<u64>().prop_map(|leader| Control::Epoch { leader: MemberId(leader) }),
        any::<(u32, u64, u64)>().prop_map(|(history_limit, dedup_expiry_seconds, dedup_limit)| {
            Control::Settings(Settings { history_limit, dedup_expiry_seconds, dedup_limit })
        }),
        any::<u32>().prop_map(|level| Control::Feature(FeatureLevel(level))),
        (counter(), counter()).prop_map(|(a, b)| Control::Lost { first: EntryId(a), last: EntryId(b) }),
    ];
    prop_oneof![4 => set, 2 => delete, 1 => control.prop_map(Body::Control)]
}

fn entry() -> impl Strategy<Value = Entry> {
    (counter(), counter(), prop::option::of(counter()), body())
        .prop_map(|(id, epoch, ts_ms, body)| Entry::encode(EntryId(id), Epoch(epoch), ts_ms, body))
}

fn record() -> impl Strategy<Value = SessionRecord> {
    let operation = prop_oneof![Just(OperationKind::Set), Just(OperationKind::Delete)];
    (request(), operation, (counter(), counter()), key(), (counter(), any::<u64>())).prop_map(
        |(request, operation, (id, ts_ms), key, (version, digest))| SessionRecord {
            request,
            operation,
            id: EntryId(id),
            ts_ms,
            key,
            version,
            digest,
        },
    )
}

/// The line with one byte changed, at a place chosen by `at`.
fn flipped(line: &[u8], at: prop::sample::Index, mask: u8) -> Vec<u8> {
    let mut damaged = line.to_vec();
    damaged[at.index(line.len())] ^= mask;
    damaged
}

proptest! {
    #[test]
    fn every_entry_comes_back_as_it_went(entry in entry()) {
        prop_assert!(!entry.line.contains(&b'\n'));
        prop_assert_eq!(Entry::decode(entry.line.clone()), Ok(entry));
    }

    #[test]
    fn a_line_is_json_that_anyone_can_read(entry in entry()) {
        let json: serde_json::Value = serde_json::from_slice(&entry.line).unwrap();
        prop_assert_eq!(json["id"].as_u64(), Some(entry.id.0));
        prop_assert_eq!(json["key"].as_str(), entry.key().map(Key::as_str));
    }

    #[test]
    fn a_truncated_or_flipped_line_is_refused(entry in entry(), at: prop::sample::Index, mask in 1_u8..) {
        prop_assert!(Entry::decode(entry.line.slice(..at.index(entry.line.len()))).is_err());
        let error = Entry::decode(flipped(&entry.line, at, mask).into()).expect_err("damage is found");
        prop_assert!(error.is_damage());
    }

    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic(bytes: Vec<u8>) {
        prop_assert!(Entry::decode(bytes.clone().into()).is_err());
        let _either = Entry::decode(seal_line(bytes).into());
    }

    #[test]
    fn a_sealed_line_with_any_member_cut_short_never_panics(entry in entry(), at: prop::sample::Index) {
        let open = verify_line(&entry.line).unwrap();
        let resealed = seal_line(open[..at.index(open.len())].to_vec());
        let _either = Entry::decode(resealed.into());
    }

    #[test]
    fn every_session_record_comes_back_as_it_went(record in record()) {
        prop_assert_eq!(SessionRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn a_truncated_or_flipped_session_record_is_refused(record in record(), at: prop::sample::Index, mask in 1_u8..) {
        let line = record.encode();
        prop_assert!(SessionRecord::decode(&line[..at.index(line.len())]).is_err());
        prop_assert!(SessionRecord::decode(&flipped(&line, at, mask)).is_err());
    }
}
