//! *unknown names wait*: what this process does not know is left for one that does. Pain 17: a deploy in either order
//! sends nothing to the dead letters.

use event_bus::prelude::*;

use super::actor::{FIRST, First, SECOND, Second};
use super::note::{Memo, Note, memo, note};
use super::world::{World, counted, dead, quick, ready, rest, stop, until_counted};

cases! { "unknown_names_wait";
    a_delivery_of_an_unknown_handler_waits_for_a_process_that_knows_it [Worker];
    deliveries_of_unknown_handlers_do_not_stand_in_the_way [Worker];
    an_unknown_event_of_a_known_handler_waits [Worker];
    an_unknown_event_without_a_key_waits [Worker];
    a_newer_version_of_an_event_waits [Worker];
    an_older_version_of_an_event_is_lifted [Worker];
    a_former_name_of_an_event_is_still_known [Worker];
}

async fn a_delivery_of_an_unknown_handler_waits_for_a_process_that_knows_it(world: &World) {
    let old = world.bus().await;
    let new =
        ready(world.builder().handler(world.actor::<First>(quick())).handler(world.actor::<Second>(quick())))
            .await;
    let worker = old.start().await.unwrap();
    new.publish_all(&[note(1).key("a"), note(2)]).await.unwrap();
    world.stage.until_done(FIRST, 2).await;
    stop(worker).await;
    assert_eq!(counted(&old).await, (2, 0, 0));
    let worker = new.start().await.unwrap();
    world.stage.until_done(SECOND, 2).await;
    rest(&new).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST).len(), 2);
}

async fn deliveries_of_unknown_handlers_do_not_stand_in_the_way(world: &World) {
    let new = ready(world.builder().handler(world.actor::<Second>(quick()))).await;
    let unknown: Vec<_> = (0..3_000).map(|number| note(number).key("a")).collect();
    new.publish_all(&unknown).await.unwrap();
    let old = ready(world.builder().window(16).handler(world.actor::<First>(quick()))).await;
    let known: Vec<_> = (0..50).map(|number| note(number).key("a")).collect();
    old.publish_all(&known).await.unwrap();
    let worker = old.start().await.unwrap();
    world.stage.until_done(FIRST, 50).await;
    stop(worker).await;
    assert_eq!(counted(&old).await.0, 3_000);
    assert!(dead(&old).await.is_empty());
}

/// A process whose first handler takes memos alone, while others publish notes for it.
async fn leaves_notes_alone(world: &World, key: Option<&str>) {
    let stage = world.stage.clone();
    let (ran, mut runs) = tokio::sync::mpsc::unbounded_channel();
    let old = ready(world.builder().handle_fn_with(FIRST, quick(), move |memo: Memo| {
        let _ = ran.send(memo.0.number);
        async { Ok(()) }
    }))
    .await;
    let new = world.bus().await;
    let worker = old.start().await.unwrap();
    let mut unknown = note(1);
    unknown.key = key.map(str::to_owned);
    let mut known = memo(2);
    known.0 = known.0.key("b");
    new.publish(&unknown).await.unwrap();
    new.publish(&known).await.unwrap();
    assert_eq!(runs.recv().await, Some(2));
    // It was looked at and put off, or was not looked at: in either case it is there.
    until_counted(&old, |ready, waiting, _| ready + waiting == 1).await;
    stop(worker).await;
    assert_eq!(dead(&old).await.len(), 0);
    let (ready, waiting, dead) = counted(&old).await;
    assert_eq!((ready + waiting, dead), (1, 0));
    assert!(stage.begun(FIRST).is_empty());
}

async fn an_unknown_event_of_a_known_handler_waits(world: &World) {
    leaves_notes_alone(world, Some("a")).await;
}

async fn an_unknown_event_without_a_key_waits(world: &World) {
    leaves_notes_alone(world, None).await;
}

/// A note as the next release writes it.
#[derive(Clone, Serialize, Deserialize, Event)]
#[event(name = "suite.note", version = 2, upcast = lift)]
struct NewNote {
    subject: String,
}

fn lift(_: u32, _: event_bus::Value) -> Result<event_bus::Value, String> {
    Ok(event_bus::Value::Map(vec![("subject".into(), "lifted".into())]))
}

async fn a_newer_version_of_an_event_waits(world: &World) {
    let new = ready(world.builder().handle_fn(FIRST, |_: NewNote| async { Ok(()) })).await;
    let old = world.bus().await;
    let worker = old.start().await.unwrap();
    new.publish(&NewNote { subject: "new".into() }).await.unwrap();
    old.publish(&note(2)).await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    stop(worker).await;
    let (ready, waiting, dead) = counted(&old).await;
    assert_eq!((ready + waiting, dead), (1, 0));
}

async fn an_older_version_of_an_event_is_lifted(world: &World) {
    let old = world.bus().await;
    old.publish(&note(1)).await.unwrap();
    let (ran, mut runs) = tokio::sync::mpsc::unbounded_channel();
    let new = ready(world.builder().handle_fn(FIRST, move |note: NewNote| {
        let _ = ran.send(note.subject);
        async { Ok(()) }
    }))
    .await;
    let worker = new.start().await.unwrap();
    assert_eq!(runs.recv().await.as_deref(), Some("lifted"));
    stop(worker).await;
}

/// A note under the name it will have.
#[derive(Clone, Serialize, Deserialize, Event)]
#[event(name = "suite.renamed", alias = "suite.note", alias = "suite.letter")]
struct Renamed {
    number: u64,
}

async fn a_former_name_of_an_event_is_still_known(world: &World) {
    let old = ready(world.builder().handle_fn(FIRST, |_: Note| async { Ok(()) })).await;
    old.publish(&note(7)).await.unwrap();
    let (ran, mut runs) = tokio::sync::mpsc::unbounded_channel();
    let new = ready(world.builder().handle_fn(FIRST, move |renamed: Renamed| {
        let _ = ran.send(renamed.number);
        async { Ok(()) }
    }))
    .await;
    let worker = new.start().await.unwrap();
    assert_eq!(runs.recv().await, Some(7));
    stop(worker).await;
}
