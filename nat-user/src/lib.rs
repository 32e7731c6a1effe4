//! The eipnat daemon and its command line.
pub mod config;
pub mod dataplane;
pub mod model;
pub mod reconcile;
pub mod store;
