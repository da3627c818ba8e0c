//! Both ends of a handshake against each other; what is refused is tested with whole transports.

use tokio::net::TcpListener;

use super::*;
use crate::auth_token::AuthToken;
use crate::transport::tests::hello;

fn credentials(member_id: u64, secret: Option<&str>) -> Credentials {
    let hello = Arc::new(ArcSwap::from_pointee(hello(member_id, None)));
    Credentials { hello, secret: secret.map(|secret| AuthToken::fixed(secret.as_bytes())) }
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let dialed = TcpStream::connect(listener.local_addr().expect("bound"));
    let (dialed, accepted) = tokio::join!(dialed, listener.accept());
    (dialed.expect("connects"), accepted.expect("accepts").0)
}

#[tokio::test]
async fn the_smaller_member_id_opens_whoever_dials() {
    for (dialer_id, acceptor_id) in [(1, 2), (2, 1)] {
        let (dialer, acceptor) = (credentials(dialer_id, Some("s")), credentials(acceptor_id, Some("s")));
        let (near, far) = sockets().await;
        let accepting = async {
            let mut accepted = match accept(far, &acceptor).await.expect("accepted") {
                Accepted::Peer(proven) => proven,
                Accepted::Snapshot { .. } => panic!("not a snapshot"),
            };
            if let Arbiter::Here { seen } = accepted.arbiter {
                assert_eq!(seen, Some(41));
                say(&mut accepted.stream, &Word::Open { connection: 42 }).await.expect("says");
            }
            accepted
        };
        let dialing = async {
            let mut proven = dial_peer(near, &dialer, MemberId(acceptor_id), |_| 41).await.expect("dialed");
            if let Arbiter::Here { seen } = proven.arbiter {
                assert_eq!(seen, None);
                say(&mut proven.stream, &Word::Open { connection: 42 }).await.expect("says");
            }
            proven
        };
        let (dialed, accepted) = tokio::join!(dialing, accepting);
        assert_eq!(dialed.hello, **acceptor.hello.load());
        assert_eq!(accepted.hello, **dialer.hello.load());
        let there = Arbiter::There { connection: 42 };
        let obeys = if dialer_id < acceptor_id { accepted.arbiter } else { dialed.arbiter };
        assert_eq!(obeys, there);
    }
}

fn transcript(dialer: &[u8], acceptor: &[u8]) -> Transcript {
    let preamble = Preamble::own(Purpose::Peer).encode();
    let said = |introduction: &[u8]| Said { preamble, introduction: introduction.to_vec() };
    Transcript { dialer: said(dialer), acceptor: said(acceptor) }
}

#[test]
fn a_proof_is_good_for_one_secret_one_side_and_one_transcript() {
    let ours = transcript(b"ab", b"c");
    let proof = ours.proof(b"s", Side::Dialer);
    assert!(ours.is_proved(b"s", Side::Dialer, &proof));
    assert!(!ours.is_proved(b"t", Side::Dialer, &proof), "another secret");
    assert!(!ours.is_proved(b"s", Side::Acceptor, &proof), "sent back to its maker");
    assert!(!transcript(b"a", b"bc").is_proved(b"s", Side::Dialer, &proof), "the bytes divided differently");
    for no_proof in ["", "zz", "é", &proof[..62], &format!("{proof}00")] {
        assert!(!ours.is_proved(b"s", Side::Dialer, no_proof), "{no_proof:?}");
    }
}

#[test]
fn two_introductions_of_one_hello_have_different_nonces() {
    let hello = hello(1, None);
    let [a, b] = [0, 1].map(|_| Introduction::of(&hello).expect("entropy").nonce);
    assert_eq!(a.len(), 2 * NONCE_BYTES);
    assert_ne!(a, b);
}

#[test]
fn a_refusal_for_a_reason_of_a_newer_release_is_still_one() {
    let word = serde_json::from_str(r#"{"refused":{"kind":"quota","reason":"too keen"}}"#).expect("a word");
    let Word::Refused(refusal) = word else { panic!("not refused") };
    assert_eq!(refusal, Refusal::new(RefusalKind::Other, "too keen"));
}
