//! *transactional-publish*: events and acknowledgements commit or vanish with the application's own transaction.

use std::sync::Arc;

use event_bus::ErrorKind;
use event_bus::prelude::*;

use super::actor::{FIRST, First};
use super::harness::Sandbox;
use super::note::{Act, note};
use super::world::{World, assert_refused, counted, quick, ready, rest, stop};

cases! { "transactional_publish";
    an_event_appears_with_the_commit [Worker, TransactionalPublish];
    an_event_vanishes_with_the_rollback [Worker, TransactionalPublish];
    a_batch_appears_with_the_commit [Worker, TransactionalPublish];
    a_running_worker_sees_a_commit [Worker, TransactionalPublish];
    order_holds_between_transactions_and_calls [Worker, TransactionalPublish];
    an_idempotency_key_is_forgotten_with_the_rollback [Worker, TransactionalPublish, IdempotencyKey];
    an_idempotency_key_is_remembered_with_the_commit [Worker, TransactionalPublish, IdempotencyKey];
    a_delay_holds_within_a_transaction [Worker, TransactionalPublish, Delay];
    a_connection_of_another_kind_is_refused [Worker, TransactionalPublish];
    an_invalid_event_leaves_the_transaction_usable [Worker, TransactionalPublish];
    an_acknowledgement_commits_with_the_handlers_writes [Worker, TransactionalComplete];
    an_acknowledgement_rolls_back_with_the_handlers_writes [Worker, TransactionalComplete];
    an_acknowledged_delivery_lets_its_key_go_on [Worker, TransactionalComplete];
    publishing_within_is_refused_where_it_is_not_offered lacks TransactionalPublish;
    completing_within_is_refused_where_it_is_not_offered lacks TransactionalComplete;
}

async fn an_event_appears_with_the_commit(world: &World) {
    let bus = world.bus().await;
    let mut tx = world.sandbox.transaction().await;
    tx.effect(1).await;
    let receipt = tx.publish(bus.publish(&note(1).key("a"))).await.unwrap();
    assert_eq!(receipt.deliveries(), 1);
    assert_eq!(counted(&bus).await, (0, 0, 0));
    tx.commit().await;
    assert_eq!(counted(&bus).await, (1, 0, 0));
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    stop(worker).await;
    assert_eq!(world.sandbox.effects().await, [1]);
    assert_eq!([world.stage.told(FIRST, 1)[0].event_id], *receipt.event_ids());
}

async fn an_event_vanishes_with_the_rollback(world: &World) {
    let bus = world.bus().await;
    let mut tx = world.sandbox.transaction().await;
    tx.effect(1).await;
    tx.publish(bus.publish(&note(1))).await.unwrap();
    tx.rollback().await;
    // Dropped is rolled back.
    let mut tx = world.sandbox.transaction().await;
    tx.publish(bus.publish(&note(2))).await.unwrap();
    drop(tx);
    let worker = bus.start().await.unwrap();
    bus.publish(&note(3)).await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), [3]);
    assert!(world.sandbox.effects().await.is_empty());
}

async fn a_batch_appears_with_the_commit(world: &World) {
    let bus = world.bus().await;
    let notes: Vec<_> = (0..200).map(|number| note(number).key("a")).collect();
    let mut tx = world.sandbox.transaction().await;
    tx.publish(bus.publish_all(&notes[..100])).await.unwrap();
    tx.publish(bus.publish_all(&notes[100..])).await.unwrap();
    tx.commit().await;
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 200).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), (0..200).collect::<Vec<_>>());
}

async fn a_running_worker_sees_a_commit(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    for number in 0..3 {
        let mut tx = world.sandbox.transaction().await;
        tx.publish(bus.publish(&note(number))).await.unwrap();
        tx.commit().await;
        world.stage.until_done(FIRST, usize::try_from(number).unwrap() + 1).await;
    }
    stop(worker).await;
}

async fn order_holds_between_transactions_and_calls(world: &World) {
    let bus = world.bus().await;
    let worker = bus.start().await.unwrap();
    for number in (0..20).step_by(2) {
        bus.publish(&note(number).key("a")).await.unwrap();
        let mut tx = world.sandbox.transaction().await;
        tx.publish(bus.publish(&note(number + 1).key("a"))).await.unwrap();
        tx.commit().await;
    }
    world.stage.until_done(FIRST, 20).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), (0..20).collect::<Vec<_>>());
}

/// Pain 6.
async fn an_idempotency_key_is_forgotten_with_the_rollback(world: &World) {
    let bus = world.bus().await;
    let mut tx = world.sandbox.transaction().await;
    tx.publish(bus.publish(&note(1)).idempotency_key("once")).await.unwrap();
    tx.rollback().await;
    let receipt = bus.publish(&note(2)).idempotency_key("once").await.unwrap();
    assert!(!receipt.is_duplicate());
    assert_eq!(counted(&bus).await, (1, 0, 0));
}

async fn an_idempotency_key_is_remembered_with_the_commit(world: &World) {
    let bus = world.bus().await;
    let mut tx = world.sandbox.transaction().await;
    tx.publish(bus.publish(&note(1)).idempotency_key("once")).await.unwrap();
    let again = tx.publish(bus.publish(&note(2)).idempotency_key("once")).await.unwrap();
    assert!(again.is_duplicate());
    tx.commit().await;
    assert!(bus.publish(&note(3)).idempotency_key("once").await.unwrap().is_duplicate());
    assert_eq!(counted(&bus).await, (1, 0, 0));
}

async fn a_delay_holds_within_a_transaction(world: &World) {
    let bus = world.bus().await;
    let mut tx = world.sandbox.transaction().await;
    tx.publish(bus.publish(&note(1)).delay(std::time::Duration::from_millis(60))).await.unwrap();
    tx.commit().await;
    assert_eq!(counted(&bus).await, (0, 1, 0));
    let worker = bus.start().await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    stop(worker).await;
}

async fn a_connection_of_another_kind_is_refused(world: &World) {
    let bus = world.bus().await;
    let mut nothing = 5_u32;
    assert_refused(
        bus.publish(&note(1)).within(&mut nothing).await,
        ErrorKind::InvalidConfiguration,
        &["Connection"],
    );
    assert_eq!(counted(&bus).await, (0, 0, 0));
}

async fn an_invalid_event_leaves_the_transaction_usable(world: &World) {
    let bus = world.bus().await;
    let mut tx = world.sandbox.transaction().await;
    assert_refused(tx.publish(bus.publish(&note(1).key(""))).await, ErrorKind::InvalidEvent, &["empty"]);
    tx.publish(bus.publish(&note(2))).await.unwrap();
    tx.commit().await;
    assert_eq!(counted(&bus).await, (1, 0, 0));
}

/// A handler that writes an effect in the transaction in which it completes; its first run rolls back if `fails_first`.
async fn effective(world: &World, fails_first: bool) -> EventBus {
    let sandbox: Arc<dyn Sandbox> = world.sandbox.clone();
    let actor = world.actor::<First>(quick()).before(move |note, cx| {
        let sandbox = sandbox.clone();
        Box::pin(async move {
            let mut tx = sandbox.transaction().await;
            tx.effect(note.number).await;
            tx.complete(cx).await?;
            if fails_first && cx.attempt() == 1 {
                tx.rollback().await;
                return Err(Failure::retry("it was told to fail"));
            }
            tx.commit().await;
            Ok(())
        })
    });
    ready(world.builder().handler(actor)).await
}

async fn an_acknowledgement_commits_with_the_handlers_writes(world: &World) {
    let bus = effective(world, false).await;
    let worker = bus.start().await.unwrap();
    bus.publish_all(&[note(1), note(2).key("a")]).await.unwrap();
    world.stage.until_done(FIRST, 2).await;
    stop(worker).await;
    assert_eq!(counted(&bus).await, (0, 0, 0));
    let mut effects = world.sandbox.effects().await;
    effects.sort_unstable();
    assert_eq!(effects, [1, 2]);
}

async fn an_acknowledgement_rolls_back_with_the_handlers_writes(world: &World) {
    let bus = effective(world, true).await;
    let worker = bus.start().await.unwrap();
    bus.publish_all(&[note(1), note(2).key("a")]).await.unwrap();
    world.stage.until_done(FIRST, 2).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.attempts(FIRST, 1), [1, 2]);
    assert_eq!(world.stage.attempts(FIRST, 2), [1, 2]);
    let mut effects = world.sandbox.effects().await;
    effects.sort_unstable();
    assert_eq!(effects, [1, 2]);
}

/// The worker is dropped after the handler's commit and before its end: the effect stays, once.
async fn an_acknowledged_delivery_lets_its_key_go_on(world: &World) {
    let bus = effective(world, false).await;
    let worker = bus.start().await.unwrap();
    bus.publish_all(&[note(1).key("a").acts([Act::Hang]), note(2).key("a")]).await.unwrap();
    loop {
        if world.sandbox.effects().await == [1] {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    drop(worker);
    let worker = effective(world, false).await.start().await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    rest(&bus).await;
    stop(worker).await;
    assert_eq!(world.stage.begun(FIRST), [1, 2]);
    assert_eq!(world.sandbox.effects().await, [1, 2]);
}

async fn publishing_within_is_refused_where_it_is_not_offered(world: &World) {
    let mut nothing = 5_u32;
    let bus = world.bus().await;
    let answer = bus.publish(&note(1)).within(&mut nothing).await;
    assert_refused(answer, ErrorKind::Unsupported, &["publishing within a transaction"]);
    assert!(world.stage.begun(FIRST).is_empty());
}

async fn completing_within_is_refused_where_it_is_not_offered(world: &World) {
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let actor = world.actor::<First>(quick()).before(move |_, cx| {
        let told = told.clone();
        Box::pin(async move {
            let _ = told.send(cx.complete_in(&mut 5_u32).await.unwrap_err().kind());
            Ok(())
        })
    });
    let bus = ready(world.builder().handler(actor)).await;
    bus.publish(&note(1)).await.unwrap();
    let worker = bus.start().await.unwrap();
    assert_eq!(hears.recv().await, Some(ErrorKind::Unsupported));
    stop(worker).await;
}
