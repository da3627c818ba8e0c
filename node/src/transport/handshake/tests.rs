//! Handshakes over a real socket, each side scripted or real.
