//! What is done with the queues that are not a kind's lane, a file each.

pub(crate) mod canary;
pub(crate) mod dead_letters;
pub(crate) mod quarantine;
