//! What RabbitMQ says, as core's errors.

use event_bus_core::{Error, ErrorKind};
use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};

pub(crate) const NAME: &str = "amqp";

/// An error of this backend.
pub(crate) fn error(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Error {
    Error::new(kind, operation, message).with_backend(NAME)
}

/// The broker did not answer in time.
pub(crate) fn no_answer(operation: &'static str) -> Error {
    error(
        ErrorKind::Unavailable,
        operation,
        "the broker did not answer in time; it may be blocked by an alarm",
    )
}

/// The bus was not prepared.
pub(crate) fn not_prepared(operation: &'static str, namespace: &str) -> Error {
    let message = format!(
        "the broker has no exchanges and queues of the bus {namespace:?}; call `migrate` before anything else"
    );
    error(ErrorKind::InvalidConfiguration, operation, message)
}

/// What the reply codes of AMQP 0-9-1 mean for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Something that was to be there is not.
    NotFound,
    /// An exclusive queue belongs to another connection.
    Locked,
    /// The user may not do this, or the password is wrong.
    Refused,
    /// The virtual host does not exist, or is closed to this user.
    NoVirtualHost,
    /// What exists differs from what was declared.
    Different,
    /// The broker has no exchanges of this type.
    NoSuchType,
    /// The broker's certificate is not to be trusted, or there is no TLS.
    Untrusted,
    /// Connection, channel or broker are gone.
    Gone,
}

impl Cause {
    pub(crate) fn of(source: &lapin::Error) -> Self {
        match source.kind() {
            lapin::ErrorKind::ProtocolError(error) => Self::of_protocol(error),
            lapin::ErrorKind::IOError(error)
                if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) =>
            {
                Self::Untrusted
            }
            _ => Self::Gone,
        }
    }

    fn of_protocol(error: &AMQPError) -> Self {
        match error.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => Self::NotFound,
            AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED) => Self::Locked,
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => Self::Refused,
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => Self::Different,
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED | AMQPHardError::INVALIDPATH) => {
                Self::NoVirtualHost
            }
            AMQPErrorKind::Hard(AMQPHardError::COMMANDINVALID) => Self::NoSuchType,
            _ => Self::Gone,
        }
    }
}

/// The error of `operation`, with the way out.
pub(crate) fn translate(operation: &'static str, source: &lapin::Error) -> Error {
    let (kind, message) = match Cause::of(source) {
        Cause::NotFound => (
            ErrorKind::InvalidConfiguration,
            "an exchange or a queue of the bus is missing; call `migrate` before anything else",
        ),
        Cause::Refused => (
            ErrorKind::InvalidConfiguration,
            "the broker refused access; check user, password and the user's configure, write and read permissions",
        ),
        Cause::NoVirtualHost => (
            ErrorKind::InvalidConfiguration,
            "the broker refused the virtual host; create it (rabbitmqctl add_vhost) and set permissions",
        ),
        Cause::Different => (
            ErrorKind::InvalidConfiguration,
            "an exchange or a queue exists with other arguments than this version declares; remove it, or use another \
             namespace",
        ),
        Cause::NoSuchType => (
            ErrorKind::InvalidConfiguration,
            "the broker has no x-consistent-hash exchanges; enable the plugin with `rabbitmq-plugins enable \
             rabbitmq_consistent_hash_exchange`, or use Routing::Direct",
        ),
        Cause::Untrusted => (
            ErrorKind::InvalidConfiguration,
            "the broker did not prove by TLS who it is; check the host's name in the url, the certificate, and `ca_file`",
        ),
        Cause::Locked => (ErrorKind::Unavailable, "another process changes the bus at the moment"),
        Cause::Gone => (ErrorKind::Unavailable, "the broker is out of reach"),
    };
    error(kind, operation, message).with_source(source.to_string())
}
