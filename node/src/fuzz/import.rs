//! Logs of the Python original.

use std::collections::BTreeMap;
use std::sync::Arc;

use kv_core::group::{MemberId, NodeName, Settings};
use serde::de::IgnoredAny;

use crate::wal::import::{import_bytes, python_text};
use crate::wal::memory::MemoryStorage;
use crate::wal::new_volume::NewMember;
use crate::wal::{NewVolume, Options, open};

pub(super) fn import(data: &[u8]) {
    data.split(|&byte| byte == b'\n').for_each(text);
    volume(data);
}

/// All JSON is JSON to Python, too; and what it writes, it reads as what it wrote.
fn text(line: &[u8]) {
    let ours = python_text(line);
    let is_object = |text: &str| serde_json::from_str::<BTreeMap<String, IgnoredAny>>(text).is_ok();
    if std::str::from_utf8(line).is_ok_and(is_object) {
        assert!(ours.is_some() || nested_deeply(line), "{}", String::from_utf8_lossy(line));
    }
    if let Some(ours) = ours {
        assert_eq!(python_text(&ours), Some(ours.clone()), "{}", String::from_utf8_lossy(&ours));
    }
}

/// CPython's own limit is not JSON's.
fn nested_deeply(line: &[u8]) -> bool {
    line.iter().filter(|byte| matches!(byte, b'[' | b'{')).count() > 500
}

fn volume(log: &[u8]) {
    let storage = MemoryStorage::default();
    let name = NodeName::new("a").expect("a letter is a name");
    let member = NewMember { name: name.clone(), peer_url: "http://127.0.0.1:9000".to_owned() };
    let last = import_bytes(log, &storage, &member).expect("memory takes all");
    let new_volume = NewVolume { name, member_id: MemberId(1), settings: Settings::default() };
    let opened = open(Arc::new(storage), &Options::default(), &new_volume).expect("what was imported opens");
    assert!(!opened.recovered.report.is_damaged(), "{:?}", opened.recovered.report);
    assert_eq!(opened.recovered.state.applied().0, last);
}
