//! Frames between peers.

use bytes::{Bytes, BytesMut};
use kv_core::message::{Append, Message};
use tokio_util::codec::Decoder;

use super::sealed;
use crate::transport::frame::{FRAME_BYTES_MAX, LENGTH_BYTES, codec, decode, encode, seal_header};

pub(super) fn frame(data: &[u8]) {
    stream(data);
    payload(data.to_vec());
    payload(repaired(data));
}

/// The bytes of a connection: a frame that is announced too long is refused before room is made for it.
fn stream(data: &[u8]) {
    let (mut codec, mut buffer) = (codec(), BytesMut::from(data));
    while let Ok(Some(frame)) = codec.decode(&mut buffer) {
        payload(frame.to_vec());
    }
    assert!(buffer.capacity() <= data.len() + FRAME_BYTES_MAX + LENGTH_BYTES);
}

/// The payload with checksums that hold, in its header and in its lines.
fn repaired(data: &[u8]) -> Vec<u8> {
    let Some((kind, rest)) = data.split_first() else { return Vec::new() };
    let mut lines = rest.split(|&byte| byte == b'\n');
    let header = lines.next().unwrap_or(&[]);
    let mut payload = [&[*kind], &b"00000000"[..], header].concat();
    seal_header(&mut payload);
    for line in lines {
        payload.push(b'\n');
        payload.extend(sealed(line));
    }
    payload
}

/// A message that is read is written, in one frame or several, and is then read as the same.
fn payload(payload: Vec<u8>) {
    let Ok(message) = decode(Bytes::from(payload)) else { return };
    let mut out = BytesMut::new();
    let frames = encode(&message, &mut out).expect("a message that fitted a frame fits again");
    let mut codec = codec();
    let mut read = Vec::new();
    while let Some(frame) = codec.decode(&mut out).expect("own frames are whole") {
        read.push(decode(frame.freeze()).expect("own frames are read"));
    }
    assert_eq!((read.len() as u64, out.len()), (frames, 0));
    assert_eq!(joined(read), Some(message));
}

fn joined(messages: Vec<Message>) -> Option<Message> {
    messages.into_iter().reduce(|first, next| match (first, next) {
        (Message::Append(first), Message::Append(next)) => {
            let entries = [first.entries, next.entries].concat();
            Message::Append(Append { entries, ..first })
        }
        (Message::Lines { first, entries, .. }, Message::Lines { last, compacted, entries: more, .. }) => {
            Message::Lines { first, last, compacted, entries: [entries, more].concat() }
        }
        (first, next) => panic!("{first:?} and {next:?} came of one message"),
    })
}
