//! The slow path's bookkeeping of frames, without anything that takes a kernel.
#![expect(dead_code, reason = "only what can lose a frame is driven")]

#[path = "../../../nat-user/src/slowpath/frames.rs"]
pub(crate) mod frames;
#[path = "../../../nat-user/src/slowpath/kernel.rs"]
pub(crate) mod kernel;
