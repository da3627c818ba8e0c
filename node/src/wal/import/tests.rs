//! The import against the sample of the original and against every layout it ever had.

use super::*;

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
