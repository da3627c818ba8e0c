//! The same operations in each server's words: PUT and GET of 16-byte values over many keys.

use std::net::SocketAddr;

/// Keys of the speed sections.
pub(crate) const KEYS: u64 = 100_000;

/// Sixteen bytes.
const VALUE: &str = "0123456789abcdef";

/// A key's number for the n-th operation: every key about equally often, in no order.
pub(crate) fn shuffled(n: u64, keys: u64) -> u64 {
    // Fibonacci hashing: the high bits of the product are well mixed.
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % keys
}

fn head(out: &mut Vec<u8>, method: &str, target: std::fmt::Arguments<'_>, host: SocketAddr, body: &[u8]) {
    use std::io::Write as _;
    write!(out, "{method} {target} HTTP/1.1\r\nHost: {host}\r\n").expect("a Vec takes it");
    if !body.is_empty() {
        write!(out, "Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()).expect("a Vec takes it");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
}

/// `PUT /key/{key}` of a 16-byte value.
pub(crate) fn kv_put(host: SocketAddr, keys: u64) -> impl Fn(u64, &mut Vec<u8>) {
    let body = format!("{{\"value\":\"{VALUE}\"}}").into_bytes();
    move |n, out| head(out, "PUT", format_args!("/key/key-{:012}", shuffled(n, keys)), host, &body)
}

/// `PUT` of keys in order, with a value of this many bytes.
pub(crate) fn kv_fill(host: SocketAddr, keys: u64, value_bytes: usize) -> impl Fn(u64, &mut Vec<u8>) {
    let body = format!("{{\"value\":\"{}\"}}", "v".repeat(value_bytes.saturating_sub(2))).into_bytes();
    move |n, out| head(out, "PUT", format_args!("/key/key-{:012}", n % keys), host, &body)
}

/// `GET /key/{key}` of keys that [`kv_fill`] wrote.
pub(crate) fn kv_get(host: SocketAddr, keys: u64) -> impl Fn(u64, &mut Vec<u8>) {
    move |n, out| head(out, "GET", format_args!("/key/key-{:012}", shuffled(n, keys)), host, b"")
}

/// etcd's JSON gateway: key and value in base64.
pub(crate) fn etcd_put(host: SocketAddr) -> impl Fn(u64, &mut Vec<u8>) {
    let value = base64(VALUE.as_bytes());
    move |n, out| {
        let key = base64(format!("key-{:012}", shuffled(n, KEYS)).as_bytes());
        let body = format!("{{\"key\":\"{key}\",\"value\":\"{value}\"}}");
        head(out, "POST", format_args!("/v3/kv/put"), host, body.as_bytes());
    }
}

pub(crate) fn redis_set(n: u64, out: &mut Vec<u8>) {
    use std::io::Write as _;
    let key = shuffled(n, KEYS);
    write!(out, "*3\r\n$3\r\nSET\r\n$16\r\nkey-{key:012}\r\n$16\r\n{VALUE}\r\n").expect("a Vec takes it");
}

pub(crate) fn redis_get(n: u64, out: &mut Vec<u8>) {
    use std::io::Write as _;
    let key = shuffled(n, KEYS);
    write!(out, "*2\r\n$3\r\nGET\r\n$16\r\nkey-{key:012}\r\n").expect("a Vec takes it");
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let n = part.iter().fold(0_u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - part.len()));
        for i in 0..4 {
            let digit = DIGITS[(n >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= part.len() { char::from(digit) } else { '=' });
        }
    }
    out
}
