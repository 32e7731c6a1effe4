//! The daemon `eipnat` and its command line.
//!
//! ```text
//! cli -> api -> control -> model      what a command changes, or why it is refused
//!                       -> store      commits the change
//!                       -> reconcile  compares desired and actual state, and writes the difference
//!                            -> dataplane   the XDP program's maps, or a datapath in memory
//! ```
//!
//! **Invariants:** the model does no I/O; the store commits before the datapath changes; only [`reconcile::apply`]
//! writes bindings; a command is acknowledged when its change is in force for every packet.

mod ahead;
pub mod api;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod explain;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod packet;
pub mod reconcile;
pub mod slowpath;
pub mod store;
#[cfg(test)]
mod testing;
pub mod top;
pub mod trace;
pub mod usage;
