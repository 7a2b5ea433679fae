//! *same API everywhere*, its limits: what is invalid is one clear error, at the earliest moment, that names the value and
//! the way out; nothing is half written.

use std::time::Duration;

use event_bus::ErrorKind;
use event_bus::prelude::*;

use super::actor::{FIRST, First};
use super::harness::Tamper;
use super::note::{Note, note};
use super::world::{World, assert_refused, counted, quick, stop};

cases! { "same_api";
    an_event_over_the_size_limit_is_refused;
    an_event_of_the_largest_size_is_delivered [Worker];
    an_empty_key_is_refused;
    a_key_over_the_limit_is_refused;
    a_key_with_a_nul_is_refused;
    the_longest_key_is_delivered [Worker];
    a_malformed_event_name_is_refused;
    an_idempotency_key_out_of_limits_is_refused [IdempotencyKey];
    a_delay_of_more_than_ten_years_is_refused [Delay];
    options_out_of_range_are_refused_all_at_once;
    two_handlers_of_one_name_are_refused;
    a_malformed_handler_name_is_refused;
    a_bus_without_a_backend_is_refused;
    settings_out_of_range_are_refused;
    a_store_that_was_not_prepared_is_refused [Worker];
    a_store_of_a_newer_version_is_refused [Worker, Tamper];
    a_store_with_other_slots_is_refused [Worker, Tamper];
}

async fn refused(world: &World, event: &Note, texts: &[&str]) {
    let bus = world.bus().await;
    let batch = [note(1), event.clone()];
    assert_refused(bus.publish_all(&batch).await, ErrorKind::InvalidEvent, texts);
    if world.harness.capabilities().durable {
        assert_eq!(counted(&bus).await, (0, 0, 0));
    }
    assert!(world.stage.begun(FIRST).is_empty());
}

fn of_size(bytes: usize) -> Note {
    let mut event = note(2);
    event.text = "x".repeat(bytes);
    event
}

async fn an_event_over_the_size_limit_is_refused(world: &World) {
    let over = of_size(event_bus::Builder::MAX_EVENT_BYTES);
    refused(world, &over, &["suite.note", "1048576", "max_event_bytes"]).await;
    refused(world, &of_size(32 * 1024 * 1024), &["suite.note", "1048576"]).await;
}

async fn an_event_of_the_largest_size_is_delivered(world: &World) {
    let bus = world.bus().await;
    let rest = event_bus::codec::encode(&of_size(1_000_000)).unwrap().len() - 1_000_000;
    let event = of_size(event_bus::Builder::MAX_EVENT_BYTES - rest);
    let worker = bus.start().await.unwrap();
    bus.publish(&event).await.unwrap();
    world.stage.until_done(FIRST, 1).await;
    stop(worker).await;
    assert_eq!(world.stage.told(FIRST, 2)[0].paper.note(), &event);
}

async fn an_empty_key_is_refused(world: &World) {
    refused(world, &note(2).key(""), &["partition key of suite.note is empty"]).await;
}

async fn a_key_over_the_limit_is_refused(world: &World) {
    refused(world, &note(2).key("ä".repeat(257)), &["514 bytes", "512"]).await;
    refused(world, &note(2).key("k".repeat(64 * 1024)), &["65536 bytes", "512"]).await;
}

async fn a_key_with_a_nul_is_refused(world: &World) {
    refused(world, &note(2).key("a\0b"), &["partition key of suite.note", "NUL"]).await;
}

async fn the_longest_key_is_delivered(world: &World) {
    let bus = world.bus().await;
    let key = "ä".repeat(256);
    let worker = bus.start().await.unwrap();
    bus.publish_all(&[note(1).key(&key), note(2).key(&key)]).await.unwrap();
    world.stage.until_done(FIRST, 2).await;
    stop(worker).await;
    assert_eq!(world.stage.told(FIRST, 1)[0].key, Some(key));
}

#[derive(Clone, Serialize, Deserialize)]
struct Misnamed;

impl Partitioned for Misnamed {}

impl Event for Misnamed {
    const NAME: &'static str = "suite.mis named";
}

async fn a_malformed_event_name_is_refused(world: &World) {
    let bus = world.bus().await;
    assert_refused(bus.publish(&Misnamed).await, ErrorKind::InvalidEvent, &["suite.mis named", "' '"]);
    let bus = world.builder().handle_fn(FIRST, |_: Misnamed| async { Ok(()) }).build();
    assert_refused(bus, ErrorKind::InvalidConfiguration, &[FIRST, "suite.mis named"]);
}

async fn an_idempotency_key_out_of_limits_is_refused(world: &World) {
    let bus = world.bus().await;
    for (key, text) in [("", "empty"), ("a\0", "NUL"), (&*"k".repeat(513), "513 bytes")] {
        let answer = bus.publish(&note(1)).idempotency_key(key).await;
        assert_refused(answer, ErrorKind::InvalidEvent, &["idempotency key", text]);
    }
}

async fn a_delay_of_more_than_ten_years_is_refused(world: &World) {
    let answer = world.bus().await;
    let answer = answer.publish(&note(1)).delay(Duration::from_secs(11 * 365 * 24 * 3_600)).await;
    assert_refused(answer, ErrorKind::InvalidEvent, &["delay", "10 years"]);
}

async fn options_out_of_range_are_refused_all_at_once(world: &World) {
    let options = quick()
        .priority(10)
        .max_attempts(0)
        .concurrency(0)
        .timeout(Duration::ZERO)
        .on_failure(Order::Release)
        .on_exhausted(Exhausted::HoldKey);
    let bus = world.builder().handler(world.actor::<First>(options)).build();
    let texts = ["priority 10", "max_attempts is 0", "concurrency is 0", "timeout is 0", "HoldKey", FIRST];
    assert_refused(bus, ErrorKind::InvalidConfiguration, &texts);
}

async fn two_handlers_of_one_name_are_refused(world: &World) {
    let builder = world.builder().handler(world.actor::<First>(quick()));
    let bus = builder.handle_fn(FIRST, |_: Note| async { Ok(()) }).build();
    assert_refused(bus, ErrorKind::InvalidConfiguration, &["two handlers", FIRST]);
}

async fn a_malformed_handler_name_is_refused(world: &World) {
    for (name, text) in [("", "empty"), ("a b", "\"a b\""), (&*"n".repeat(129), "129"), ("ä", "ä")] {
        let bus = world.builder().handle_fn(name, |_: Note| async { Ok(()) }).build();
        assert_refused(bus, ErrorKind::InvalidConfiguration, &["handler", text]);
    }
}

async fn a_bus_without_a_backend_is_refused(_: &World) {
    assert_refused(EventBus::builder().build(), ErrorKind::InvalidConfiguration, &["no backend"]);
}

async fn settings_out_of_range_are_refused(world: &World) {
    let builder = world.builder().concurrency(0).window(0).poll_interval(Duration::ZERO).max_event_bytes(0);
    let texts = ["concurrency 0", "window 0", "poll_interval is 0", "max_event_bytes is 0"];
    assert_refused(builder.build(), ErrorKind::InvalidConfiguration, &texts);
}

async fn a_store_that_was_not_prepared_is_refused(world: &World) {
    let bus = world.builder().handler(world.actor::<First>(quick())).build().unwrap();
    let error = bus.publish(&note(1)).await.unwrap_err();
    assert!(event_bus::chain(&error).contains("migrate"), "{error}");
}

async fn tampered(world: &World, tamper: Tamper, texts: &[&str]) {
    drop(world.bus().await);
    world.sandbox.tamper(tamper).await;
    let bus = world.builder().handler(world.actor::<First>(quick())).build().unwrap();
    assert_refused(bus.migrate().await, ErrorKind::InvalidConfiguration, texts);
    let worker = bus.start().await;
    assert_refused(worker.map(drop), ErrorKind::InvalidConfiguration, texts);
}

async fn a_store_of_a_newer_version_is_refused(world: &World) {
    tampered(world, Tamper::NewerSchema, &["version", "99", "binary"]).await;
}

async fn a_store_with_other_slots_is_refused(world: &World) {
    tampered(world, Tamper::OtherSlots, &["slots", "64"]).await;
}
