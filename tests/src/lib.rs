//! The test harness of the demo, the tests and the benchmark: servers, found by the services script or started as a private pair; a database
//! and a RabbitMQ name prefix for each sandbox; the fleet's processes.

pub mod cage;
pub mod fleet;
pub mod pair;
pub mod sandbox;
