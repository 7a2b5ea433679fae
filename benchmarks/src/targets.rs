//! The stores that can be measured, a file each.

pub mod amqp;
pub mod postgres;
pub mod redis;
pub mod sqlite;
