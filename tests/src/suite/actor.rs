//! The handlers of the suite: they do what the event says.

use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;

use event_bus::prelude::*;

use super::note::{Act, Note, Paper, SCRIPTED};
use super::stage::{Running, Stage, What};

/// A handler's name.
pub(crate) trait Role: Send + Sync + 'static {
    /// The name.
    const NAME: &'static str;
}

macro_rules! roles {
    ($($role:ident $constant:ident $name:literal;)*) => {
        $(
            #[doc = concat!("The handler called ", $name, ".")]
            pub(crate) struct $role;

            impl Role for $role {
                const NAME: &'static str = $name;
            }

            #[doc = concat!("The name of [`", stringify!($role), "`].")]
            pub(crate) const $constant: &str = $name;
        )*
    };
}

roles! {
    First FIRST "suite.first";
    Second SECOND "suite.second";
    Third THIRD "suite.third";
}

type Before = dyn for<'a> Fn(&'a Note, &'a Context) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>
    + Send
    + Sync;

/// Does what the event says, and tells the stage.
pub(super) struct Actor<R> {
    stage: Arc<Stage>,
    options: HandlerOptions,
    before: Option<Box<Before>>,
    role: PhantomData<fn() -> R>,
}

impl<R: Role> Actor<R> {
    pub(super) fn new(stage: Arc<Stage>, options: HandlerOptions) -> Self {
        Self { stage, options, before: None, role: PhantomData }
    }

    /// Does this first, in each run.
    #[must_use]
    pub(super) fn before<F>(mut self, before: F) -> Self
    where
        F: for<'a> Fn(
                &'a Note,
                &'a Context,
            ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>
            + Send
            + Sync
            + 'static,
    {
        self.before = Some(Box::new(before));
        self
    }
}

#[async_trait]
impl<R: Role> Handler for Actor<R> {
    const NAME: &'static str = R::NAME;
    type Event = Paper;
    type Output = ();

    fn interested(&self, paper: &Paper) -> bool {
        let readers = &paper.note().readers;
        readers.is_empty() || readers.iter().any(|reader| reader == R::NAME)
    }

    fn options(&self) -> HandlerOptions {
        self.options.clone()
    }

    async fn handle(&self, paper: Paper, cx: &Context) -> Result<(), Failure> {
        let (run, mut running) = self.stage.begin(R::NAME, &paper, cx);
        if let Some(before) = &self.before
            && let Err(failure) = before(paper.note(), cx).await
        {
            running.will_be(What::Failed);
            return Err(failure);
        }
        act(&paper.note().act(R::NAME, run), paper.note(), &self.stage, &mut running).await
    }
}

async fn act(act: &Act, note: &Note, stage: &Stage, running: &mut Running) -> Result<(), Failure> {
    let failure = match act {
        Act::Succeed => None,
        Act::Wait => {
            stage.gate(note.number).await;
            None
        }
        Act::WaitAndFail => {
            stage.gate(note.number).await;
            Some(Failure::retry("it was told to fail"))
        }
        Act::Sleep(time) => {
            tokio::time::sleep(*time).await;
            None
        }
        Act::Fail => Some(Failure::retry("it was told to fail")),
        Act::FailFor(delay) => Some(Failure::retry_after(*delay, "it was told to fail")),
        Act::Discard => Some(Failure::discard("it was told to give up")),
        Act::Snooze(delay) => Some(Failure::snooze(*delay)),
        Act::Hang => std::future::pending().await,
        Act::Panic => panic!("a panic {SCRIPTED}"),
        Act::Block(_) | Act::Abort | Act::Publish(_) => panic!("only programs do that"),
    };
    match failure {
        None => {
            running.will_be(What::Done);
            Ok(())
        }
        Some(failure) => {
            running.will_be(What::Failed);
            Err(failure)
        }
    }
}
