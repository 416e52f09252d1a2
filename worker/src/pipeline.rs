//! The way of a due wake-up: a consumer takes deliveries, intake decodes them, batch collects them, apply rechecks and writes, settle acks.

pub(crate) mod apply;
pub(crate) mod attempt;
pub(crate) mod batch;
pub(crate) mod consumer;
pub(crate) mod handler;
pub(crate) mod inbox;
pub mod intake;
pub(crate) mod lane;
pub(crate) mod patience;
mod prefetch;
pub(crate) mod settle;
mod subscription;
