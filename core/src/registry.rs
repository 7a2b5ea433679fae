//! The handlers of a bus, in the order of their registration, with their types erased.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use async_trait::async_trait;

use crate::codec::DecodeError;
use crate::context::Context;
use crate::event::{Events, check_name};
use crate::handler::{Failure, Handler, HandlerOptions};

/// A handler without its types.
#[async_trait]
pub(crate) trait ErasedHandler: Send + Sync {
    fn is_interested(&self, event: &dyn Any) -> bool;
    fn event_names(&self) -> Vec<&'static str>;
    fn takes(&self, event: &str) -> bool;
    async fn run(&self, cx: &Context) -> Result<(), RunError>;
}

/// Why a call of a handler gave no success.
pub(crate) enum RunError {
    Undecodable(DecodeError),
    Failed(Failure),
}

struct Erased<H>(H);

#[async_trait]
impl<H: Handler> ErasedHandler for Erased<H> {
    fn is_interested(&self, event: &dyn Any) -> bool {
        H::Event::inspect(event, |event| self.0.interested(event)).unwrap_or(false)
    }

    fn event_names(&self) -> Vec<&'static str> {
        H::Event::names()
    }

    fn takes(&self, event: &str) -> bool {
        H::Event::accepts(event)
    }

    async fn run(&self, cx: &Context) -> Result<(), RunError> {
        let event = decode::<H::Event>(cx).map_err(RunError::Undecodable)?;
        self.0.handle(event, cx).await.map(drop).map_err(RunError::Failed)
    }
}

struct Closure<E, F> {
    run: F,
    event: PhantomData<fn() -> E>,
}

#[async_trait]
impl<E, F, Fut> ErasedHandler for Closure<E, F>
where
    E: Events,
    F: Fn(E) -> Fut + Send + Sync,
    Fut: Future<Output = Result<(), Failure>> + Send,
{
    fn is_interested(&self, event: &dyn Any) -> bool {
        E::inspect(event, |_| true).unwrap_or(false)
    }

    fn event_names(&self) -> Vec<&'static str> {
        E::names()
    }

    fn takes(&self, event: &str) -> bool {
        E::accepts(event)
    }

    async fn run(&self, cx: &Context) -> Result<(), RunError> {
        let event = decode::<E>(cx).map_err(RunError::Undecodable)?;
        (self.run)(event).await.map_err(RunError::Failed)
    }
}

pub(crate) fn decode<E: Events>(cx: &Context) -> Result<E, DecodeError> {
    let envelope = &cx.delivery().envelope;
    E::decode(&envelope.name, envelope.version, &envelope.payload)
}

/// A handler as the bus knows it.
#[derive(Clone)]
pub struct Registered {
    name: Arc<str>,
    options: HandlerOptions,
    handler: Arc<dyn ErasedHandler>,
}

impl Registered {
    pub(crate) fn new<H: Handler>(handler: H) -> Self {
        Self { name: H::NAME.into(), options: handler.options(), handler: Arc::new(Erased(handler)) }
    }

    pub(crate) fn from_closure<E, F, Fut>(name: &str, options: HandlerOptions, run: F) -> Self
    where
        E: Events,
        F: Fn(E) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        Self { name: name.into(), options, handler: Arc::new(Closure { run, event: PhantomData }) }
    }

    /// The stable name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its options, valid once the bus is built.
    pub fn options(&self) -> &HandlerOptions {
        &self.options
    }

    /// Its priority: 0 (first) to 9.
    pub fn priority(&self) -> u8 {
        self.options.priority
    }

    /// The names of the events it takes.
    pub fn event_names(&self) -> Vec<&'static str> {
        self.handler.event_names()
    }

    /// Whether it takes events of this name.
    pub fn takes(&self, event: &str) -> bool {
        self.handler.takes(event)
    }

    pub(crate) fn is_interested(&self, event: &dyn Any) -> bool {
        self.handler.is_interested(event)
    }

    pub(crate) async fn call(&self, cx: &Context) -> Result<(), RunError> {
        self.handler.run(cx).await
    }
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered")
            .field("name", &self.name)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// All handlers of a bus.
#[derive(Debug)]
pub struct Registry {
    handlers: Vec<Registered>,
    by_name: HashMap<Arc<str>, usize>,
}

impl Registry {
    /// Takes the handlers, or says everything that is wrong with them.
    pub(crate) fn new(handlers: Vec<Registered>) -> Result<Self, Vec<String>> {
        let mut by_name = HashMap::new();
        let mut problems = Vec::new();
        for (position, handler) in handlers.iter().enumerate() {
            if let Err(problem) = check_name(&handler.name) {
                problems.push(format!("handler {:?}: {problem}", handler.name));
            }
            problems.extend(
                handler
                    .options
                    .problems()
                    .into_iter()
                    .map(|problem| format!("handler {:?}: {problem}", handler.name)),
            );
            let mut names = HashSet::new();
            for event in handler.event_names() {
                if !names.insert(event) {
                    problems
                        .push(format!("handler {:?}: two of its events are called {event:?}", handler.name));
                }
                if let Err(problem) = check_name(event) {
                    problems.push(format!("handler {:?}: event {event:?}: {problem}", handler.name));
                }
            }
            if by_name.insert(handler.name.clone(), position).is_some() {
                problems.push(format!("two handlers are called {:?}; a name is an identity", handler.name));
            }
        }
        if problems.is_empty() { Ok(Self { handlers, by_name }) } else { Err(problems) }
    }

    /// The handlers in the order of their registration.
    pub fn handlers(&self) -> &[Registered] {
        &self.handlers
    }

    /// The handler called `name`.
    pub fn find(&self, name: &str) -> Option<&Registered> {
        self.by_name.get(name).map(|position| &self.handlers[*position])
    }
}
