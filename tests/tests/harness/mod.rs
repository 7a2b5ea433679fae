//! What each backend of this workspace brings to be tested.

pub(crate) mod amqp;
pub(crate) mod inline;
pub(crate) mod postgres;
pub(crate) mod redis;
pub(crate) mod sqlite;
