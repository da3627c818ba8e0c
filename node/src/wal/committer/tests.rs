//! The thread, on a real directory and on one that runs out of room.
