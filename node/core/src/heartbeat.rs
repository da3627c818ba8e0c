//! Tick-based failure detector.
