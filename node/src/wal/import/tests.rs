//! The import against the sample of the original and against every layout it ever had.

use super::*;
use crate::wal::crash_tests::enumerator::{Operation, at_least};
use crate::wal::crash_tests::offline::NewVolumeJudge;
use crate::wal::memory::MemoryStorage;
use crate::wal::recovery::tests::reopen;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// Compares as Python's `==` on parsed JSON does not: integers by digits, floats by their bits.
fn same_json(ours: &[u8], expected: &str) -> bool {
    let canonical = |text: &[u8]| {
        let object = [b"{\"v\":", text, b"}"].concat();
        python::dump_without(&python::parse_object(&object).expect("JSON"), "")
    };
    canonical(ours) == canonical(expected.as_bytes())
}

#[test]
fn the_sample_of_the_original_gives_exactly_its_state() {
    let expected = std::fs::read(fixture("python-wal.expected.json")).expect("fixture");
    let expected: std::collections::BTreeMap<String, Box<serde_json::value::RawValue>> =
        serde_json::from_slice(&expected).expect("JSON");
    assert_eq!(expected["last_id"].get(), "276");
    #[derive(serde::Deserialize)]
    struct Expected {
        value: Box<serde_json::value::RawValue>,
        version: u64,
        history: std::collections::BTreeMap<u64, Box<serde_json::value::RawValue>>,
    }
    let expected: std::collections::BTreeMap<String, Expected> =
        serde_json::from_str(expected["keys"].get()).expect("keys");

    let mut report = ImportReport::default();
    let (keys, last_id) = collect(&fixture("python-wal"), OnDamage::Stop, &mut report).expect("intact");
    assert_eq!((last_id.0, report.files, report.lines_verified, report.lines_without_crc), (276, 4, 276, 0));
    assert_eq!(keys.len(), expected.len());
    for (key, versions) in &keys {
        let (current, earlier) = versions.split_last().expect("never empty");
        let expected = &expected[key.as_str()];
        assert_eq!(current.version, expected.version, "{key:?}");
        assert!(same_json(current.value.as_bytes(), expected.value.get()), "{key:?}");
        assert_eq!(earlier.len(), expected.history.len(), "{key:?}");
        for version in earlier {
            let expected = expected.history[&version.version].get();
            assert!(same_json(version.value.as_bytes(), expected), "{key:?}");
        }
    }
}

/// A source directory with these files, and options that import it.
struct Source {
    dir: tempfile::TempDir,
    options: ImportOptions,
}

fn source(files: &[(&str, &str)]) -> Source {
    let dir = tempfile::tempdir().expect("temporary directory");
    let from = dir.path().join("from");
    std::fs::create_dir(&from).expect("new directory");
    for (name, text) in files {
        std::fs::write(from.join(name), text).expect("written");
    }
    let member = NewMember {
        name: kv_core::group::NodeName::new("leader").expect("name"),
        peer_url: "http://127.0.0.1:9000".into(),
    };
    let options = ImportOptions {
        source: from,
        data_dir: dir.path().join("to"),
        member,
        settings: Settings::default(),
        on_damage: OnDamage::Stop,
    };
    Source { dir, options }
}

/// Lines of a file of the new volume; none when it does not exist.
fn lines(options: &ImportOptions, name: &str) -> Vec<String> {
    let text = std::fs::read_to_string(options.data_dir.join(name)).unwrap_or_default();
    text.lines().map(|line| line.split(",\"crc\"").next().expect("split yields one").to_owned()).collect()
}

const TWO_SETS_AND_A_DELETE: &str = r#"{"id": 1, "operation": "SET", "key": "a", "value": { "x" : "\u00e9" }}
{"id": 2, "operation": "SET", "key": "b", "value": 1}
{"id": 3, "operation": "SET", "key": "a", "value": 12345678901234567890123}
{"id": 5, "operation": "DELETE", "key": "b", "value": null}
"#;

#[test]
fn a_single_log_without_crc_or_version_becomes_a_volume() {
    let source = source(&[("wal.log", TWO_SETS_AND_A_DELETE)]);
    let report = run(&source.options).expect("imported");
    assert_eq!((report.lines_without_crc, report.keys, report.earlier_versions, report.last_id), (4, 1, 1, 5));
    assert_eq!(
        lines(&source.options, "wal.log.history.1"),
        [r#"{"id":1,"epoch":1,"operation":"SET","key":"a","value":{"x":"\u00e9"},"version":1"#]
    );
    assert_eq!(
        lines(&source.options, "wal.log.segment.1"),
        [r#"{"id":3,"epoch":1,"operation":"SET","key":"a","value":12345678901234567890123,"version":2"#]
    );
    assert_eq!(lines(&source.options, "wal.log.segment.2"), [""; 0]);
    let storage = FileStorage::open_read_only(&source.options.data_dir).expect("readable");
    let manifest = Manifest::load(&storage).expect("readable").expect("there");
    assert_eq!(manifest.base.horizon, LogPosition { epoch: Epoch(1), id: EntryId(5) });
    assert_eq!(manifest.active.first, EntryId(6));
    let voters = &manifest.configuration.configuration.voters;
    assert_eq!(voters.iter().map(|v| v.member_id).collect::<Vec<_>>(), [manifest.hard.member_id]);
    assert_eq!(manifest.hard.cluster_id.map(|id| id.to_string()), Some(report.cluster_id));
}

#[test]
fn lines_with_crc_and_without_version_are_counted() {
    let text = r#"{"id": 14, "operation": "SET", "key": "key6", "value": "myvalue", "crc": 1508983172}"#;
    let source = source(&[("wal.log.segment.1", text)]);
    assert_eq!(run(&source.options).expect("imported").lines_verified, 1);
    assert_eq!(
        lines(&source.options, "wal.log.segment.1"),
        [r#"{"id":14,"epoch":1,"operation":"SET","key":"key6","value":"myvalue","version":1"#]
    );
}

#[test]
fn segments_are_read_by_number_and_other_files_are_not() {
    let line = |id: u32| format!("{{\"id\": {id}, \"operation\": \"SET\", \"key\": \"a\", \"value\": {id}}}\n");
    let names = ["wal.log.segment.10", "wal.log.segment.9", "wal.log", "wal.log.segment.9.tmp"];
    let texts = [line(3), line(2), line(1), "garbage".to_owned()];
    let files: Vec<(&str, &str)> = names.into_iter().zip(texts.iter().map(String::as_str)).collect();
    let source = source(&files);
    assert_eq!(run(&source.options).expect("imported").files, 3);
    assert_eq!(
        lines(&source.options, "wal.log.segment.1"),
        [r#"{"id":3,"epoch":1,"operation":"SET","key":"a","value":3,"version":3"#]
    );
}

#[test]
fn a_damaged_line_is_named_and_nothing_is_written() {
    let good = std::fs::read_to_string(fixture("python-wal/wal.log.segment.2")).expect("fixture");
    let damaged = good.replacen("\"value\": ", "\"value\":  1", 1);
    let torn = "{\"id\": 400, \"operation\": \"SE";
    let mut source = source(&[("wal.log.segment.1", &good), ("wal.log.segment.2", &damaged), ("wal.log", torn)]);
    let error = run(&source.options).expect_err("torn line").to_string();
    assert!(error.contains("wal.log:1: not JSON"), "{error}");
    std::fs::remove_file(source.options.source.join("wal.log")).expect("removed");
    let error = run(&source.options).expect_err("damaged line").to_string();
    assert!(error.contains("wal.log.segment.2:1: "), "{error}");
    assert!(!source.options.data_dir.exists(), "the target was touched");

    source.options.on_damage = OnDamage::Skip;
    let report = run(&source.options).expect("the rest is intact");
    let [skipped] = &report.skipped[..] else { panic!("{report}") };
    assert_eq!(skipped.line, 1);
    assert!(report.to_string().contains("wal.log.segment.2:1: "), "{report}");
}

#[test]
fn the_history_limit_holds_for_what_is_imported() {
    let mut source = source(&[("wal.log", TWO_SETS_AND_A_DELETE)]);
    source.options.settings.history_limit = 0;
    assert_eq!(run(&source.options).expect("imported").earlier_versions, 0);
    assert_eq!(lines(&source.options, "wal.log.history.1"), [""; 0]);
}

#[test]
fn neither_a_full_target_nor_a_wrong_source_is_taken() {
    let source = source(&[("wal.log", TWO_SETS_AND_A_DELETE)]);
    run(&source.options).expect("imported");
    let again = run(&source.options).expect_err("not empty").to_string();
    assert!(again.contains("is not empty"), "{again}");
    let ours = ImportOptions {
        source: source.options.data_dir.clone(),
        data_dir: source.dir.path().join("new"),
        ..source.options.clone()
    };
    assert!(matches!(run(&ours), Err(ImportError::NotTheOriginals(_))));
    let empty = ImportOptions { source: source.dir.path().to_owned(), ..ours };
    assert!(matches!(run(&empty), Err(ImportError::NothingToImport(_))));
}

#[test]
fn the_source_is_left_as_it_was() {
    let good = std::fs::read(fixture("python-wal/wal.log.segment.1")).expect("fixture");
    let source = source(&[("wal.log.segment.1", std::str::from_utf8(&good).expect("ASCII"))]);
    let path = source.options.source.join("wal.log.segment.1");
    let before = std::fs::metadata(&path).and_then(|m| m.modified()).expect("metadata");
    run(&source.options).expect("imported");
    assert_eq!(std::fs::read(&path).expect("there"), good);
    assert_eq!(std::fs::metadata(&path).and_then(|m| m.modified()).expect("metadata"), before);
    assert_eq!(std::fs::read_dir(&source.options.source).expect("there").count(), 1);
}

#[test]
fn a_node_finds_the_sample_as_the_original_left_it() {
    let mut source = source(&[]);
    source.options.source = fixture("python-wal");
    run(&source.options).expect("imported");
    let (keys, _) = collect(&source.options.source, OnDamage::Stop, &mut ImportReport::default()).expect("intact");

    let storage = std::sync::Arc::new(FileStorage::open(&source.options.data_dir).expect("storage"));
    let new_volume = crate::wal::recovery::tests::new_volume();
    let opened = crate::wal::open(storage, &crate::wal::Options::default(), &new_volume).expect("opened");
    let recovered = &opened.recovered;
    assert!(!recovered.report.is_damaged(), "{:?}", recovered.report);
    assert_eq!((recovered.hard.committed, recovered.state.applied()), (EntryId(276), EntryId(276)));
    assert_eq!(recovered.base.configuration.configuration.voters[0].member_id, recovered.hard.member_id);
    let keyspace = recovered.state.keyspace();
    assert_eq!(keyspace.len(), keys.len());
    for (key, versions) in &keys {
        let found = keyspace.versions(key.as_str()).found.expect("imported");
        let (current, earlier) = versions.split_last().expect("never empty");
        assert_eq!((found.current.version, &*found.current.value), (current.version, current.value.as_bytes()));
        assert_eq!(found.earlier.len(), earlier.len());
        for (locator, version) in found.earlier.iter().zip(earlier) {
            let entry = opened.reader.read_entry(locator.id).expect("readable").expect("held");
            let Body::Set { value, version: read, .. } = entry.body else { panic!("history holds SETs") };
            assert_eq!((read, value.as_bytes()), (version.version, version.value.as_bytes()));
        }
    }
    assert!(!crate::wal::verify::run(&source.options.data_dir).expect("readable").is_damaged());
}

#[test]
fn a_crash_anywhere_in_an_import_leaves_no_data_directory_or_the_whole_one() {
    let source = source(&[("wal.log", TWO_SETS_AND_A_DELETE)]);
    let ImportOptions { source: from, member, settings, .. } = &source.options;
    let (keys, last_id) = collect(from, OnDamage::Stop, &mut ImportReport::default()).expect("intact");
    let group = NewGroup::mint(member).expect("random numbers");
    let write = |storage: &MemoryStorage| {
        write_volume(storage, keys.clone(), last_id, &group, *settings, &mut ImportReport::default()).is_ok()
    };
    let whole = MemoryStorage::default();
    assert!(write(&whole));
    let judge = NewVolumeJudge::new(&group, reopen(&whole).expect("whole").recovered.state.digest());
    let operation = Operation {
        name: "import",
        begin: &Default::default,
        act: &|(), storage: &MemoryStorage| write(storage),
        check: &|disk: &MemoryStorage, is_done: &bool, what: &str| judge.check(disk, *is_done, what),
    };
    operation.crash_everywhere().assert_at_least(at_least(15, 13, 350, 5), "import");
}
