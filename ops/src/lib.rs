//! The operators' door: the schema, the topology, events set aside and dead letters. `main.rs` is its command line.

pub mod dead;
pub mod rebuild;
pub mod rungs;
pub mod set_aside;
