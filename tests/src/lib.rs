//! What demo, tests and benchmark stand on: servers found by the services script or a pair of one's own, a database and a
//! RabbitMQ name prefix of one's own, the fleet's processes.

pub mod fleet;
pub mod pair;
pub mod sandbox;
