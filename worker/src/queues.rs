//! The handlers of the queues that belong to no kind, one file each.

pub(crate) mod canary;
pub(crate) mod dead_letters;
pub(crate) mod quarantine;
