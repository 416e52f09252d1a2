//! What the demo and the integration tests stand on: servers found by the services script, a database and a RabbitMQ name
//! prefix of one's own, the fleet's processes.

pub mod fleet;
pub mod sandbox;
