//! The policy's rules: events, spans, the policy table, the tasks, and the one definition of *due*.

pub mod confidential;
pub mod due;
pub mod event;
pub mod money;
mod order;
pub mod outcome;
pub mod policy;
pub mod span;
pub mod task;
pub mod tasks;
