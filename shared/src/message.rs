//! What waits in RabbitMQ: wake-ups and the ladder of delay queues they wait in, canaries, dead letters. Pure: nothing here speaks to
//! a broker.

pub mod canary;
pub mod dead_letter;
pub mod ladder;
pub mod outgoing;
pub mod pack;
pub mod topology;
pub mod wakeup;
