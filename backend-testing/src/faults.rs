//! Fault points: what can go wrong in production, made to happen in a test.

use std::time::Duration;

use event_bus_core::backend::{Envelope, Publication};
use event_bus_core::{Error, ErrorKind};

use crate::backend::NAME;

/// Something that shall go wrong, once unless [`times`](Fault::times) says otherwise:
/// `test.inject(Fault::crash_before_ack().handler("mail.welcome"))`.
///
/// [`fail_publish`](Fault::fail_publish) works in every mode; the others strike in
/// [`drain`](crate::TestSession::drain). Of several that fit, the one injected first strikes.
#[derive(Clone, Debug)]
pub struct Fault {
    kind: FaultKind,
    handler: Option<String>,
    event: Option<String>,
    times: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    FailPublish(ErrorKind),
    DeliverTwice,
    CrashBeforeAck,
    Delay(Duration),
}

impl Fault {
    /// The next publish call fails with an error of this kind, and nothing is recorded. With
    /// [`OutcomeUnknown`](ErrorKind::OutcomeUnknown) it is the answer that is lost: everything is recorded all the same,
    /// as it can happen with a store, and a repeat makes a second copy unless it has an idempotency key.
    pub fn fail_publish(kind: ErrorKind) -> Self {
        Self::new(FaultKind::FailPublish(kind))
    }

    /// The next delivery that succeeds is delivered once more: at-least-once, seen by the handler.
    pub fn deliver_twice() -> Self {
        Self::new(FaultKind::DeliverTwice)
    }

    /// The worker vanishes after the next run and before its outcome is stored, whatever that is: the delivery comes
    /// back at once, in its place. As in production, the first crash costs no attempt and each further one of the same
    /// delivery does.
    pub fn crash_before_ack() -> Self {
        Self::new(FaultKind::CrashBeforeAck)
    }

    /// The next delivery is late by this much on the virtual clock; others of its key wait behind it.
    pub fn delay(delay: Duration) -> Self {
        Self::new(FaultKind::Delay(delay))
    }

    fn new(kind: FaultKind) -> Self {
        Self { kind, handler: None, event: None, times: 1 }
    }

    /// Only for deliveries of the handler of this name; a publish call has no handler, so there it fits nothing.
    #[must_use]
    pub fn handler(mut self, name: impl Into<String>) -> Self {
        self.handler = Some(name.into());
        self
    }

    /// Only for events of this name; a publish call fits if one of its events does.
    #[must_use]
    pub fn event(mut self, name: impl Into<String>) -> Self {
        self.event = Some(name.into());
        self
    }

    /// How often it strikes; default 1.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    fn fits_delivery(&self, handler: &str, envelope: &Envelope) -> bool {
        self.handler.as_deref().is_none_or(|name| name == handler) && self.fits_event(envelope)
    }

    fn fits_event(&self, envelope: &Envelope) -> bool {
        self.event.as_deref().is_none_or(|name| *name == *envelope.name)
    }
}

/// The faults of one test that have yet to strike.
#[derive(Default)]
pub(crate) struct Faults(Vec<Fault>);

impl Faults {
    pub(crate) fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// How many strikes are left.
    pub(crate) fn left(&self) -> usize {
        self.0.iter().map(|fault| fault.times as usize).sum()
    }

    /// The error of a publish call that shall fail.
    pub(crate) fn of_publish(&mut self, call: &Publication) -> Option<Error> {
        let kind = self.strike(|fault| match fault.kind {
            FaultKind::FailPublish(kind)
                if fault.handler.is_none()
                    && call.events.iter().any(|event| fault.fits_event(&event.envelope)) =>
            {
                Some(kind)
            }
            _ => None,
        })?;
        Some(Error::new(kind, "publish", "this test injected the fault").with_backend(NAME))
    }

    /// How late a delivery shall be.
    pub(crate) fn delay(&mut self, handler: &str, envelope: &Envelope) -> Option<Duration> {
        self.strike(|fault| match fault.kind {
            FaultKind::Delay(delay) if fault.fits_delivery(handler, envelope) => Some(delay),
            _ => None,
        })
    }

    /// Whether this fault strikes a delivery that has run.
    pub(crate) fn strikes(&mut self, kind: FaultKind, handler: &str, envelope: &Envelope) -> bool {
        self.strike(|fault| (fault.kind == kind && fault.fits_delivery(handler, envelope)).then_some(()))
            .is_some()
    }

    /// The first one that fits, used up by one.
    fn strike<T>(&mut self, fits: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        let (fault, found) = self
            .0
            .iter_mut()
            .filter(|fault| fault.times > 0)
            .find_map(|fault| fits(fault).map(|found| (fault, found)))?;
        fault.times -= 1;
        Some(found)
    }
}
