//! What waits in RabbitMQ: wake-ups and the ladder of delay queues, canaries, dead letters. Pure: nothing here contacts a
//! broker.

pub mod canary;
pub mod dead_letter;
pub mod ladder;
pub mod outgoing;
pub mod pack;
pub mod topology;
pub mod wakeup;
