//! What `#[derive(Event)]` writes.

use std::borrow::Cow;
use std::fmt;

use event_bus_core::codec::{self, DecodeError};
use event_bus_core::{Event, Events, Partitioned, Value};
use event_bus_macros::Event;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "orders.order_created", partition_key = order_id)]
struct OrderCreated {
    order_id: String,
    total: u64,
}

fn order() -> OrderCreated {
    OrderCreated { order_id: "o-17".into(), total: 1200 }
}

#[test]
fn the_name_is_the_one_that_was_given() {
    assert_eq!(OrderCreated::NAME, "orders.order_created");
    assert_eq!(OrderCreated::ALIASES, &[] as &[&str]);
    assert_eq!(OrderCreated::VERSION, 1);
    assert_eq!(OrderCreated::names(), ["orders.order_created"]);
}

#[test]
fn an_event_comes_back_from_its_payload() {
    let payload = codec::encode(&order()).unwrap();
    assert_eq!(OrderCreated::decode(OrderCreated::NAME, 1, &payload).unwrap(), order());
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "orders.order_moved", alias = "orders.moved")]
#[event(alias = "OrderMoved")]
struct OrderMoved {
    to: String,
}

#[test]
fn former_names_are_still_decoded() {
    assert_eq!(OrderMoved::ALIASES, ["orders.moved", "OrderMoved"]);
    let payload = codec::encode(&OrderMoved { to: "Bremen".into() }).unwrap();
    for name in OrderMoved::names() {
        assert_eq!(OrderMoved::decode(name, 1, &payload).unwrap().to, "Bremen");
    }
    let unknown = OrderMoved::decode("orders.other", 1, &payload);
    assert_eq!(unknown, Err(DecodeError::UnknownName { name: "orders.other".into() }));
}

/// Version 1 held the total in euros.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "orders.order_billed", version = 2, upcast = Self::in_cents)]
struct OrderBilled {
    cents: u64,
}

impl OrderBilled {
    fn in_cents(from: u32, payload: Value) -> Result<Value, String> {
        assert_eq!(from, 1);
        let fields = payload.into_map().map_err(|_| "the payload is no map")?;
        let euros = fields
            .iter()
            .find(|(key, _)| key.as_text() == Some("euros"))
            .and_then(|(_, value)| value.as_integer())
            .ok_or("the field euros is missing")?;
        Ok(Value::Map(vec![("cents".into(), (i128::from(euros) as u64 * 100).into())]))
    }
}

#[derive(Serialize)]
struct OrderBilledOnce {
    euros: u64,
}

#[test]
fn an_older_payload_is_lifted_to_the_version_of_the_type() {
    assert_eq!(OrderBilled::VERSION, 2);
    let old = codec::encode(&OrderBilledOnce { euros: 12 }).unwrap();
    assert_eq!(OrderBilled::decode(OrderBilled::NAME, 1, &old), Ok(OrderBilled { cents: 1200 }));
    let new = codec::encode(&OrderBilled { cents: 1250 }).unwrap();
    assert_eq!(OrderBilled::decode(OrderBilled::NAME, 2, &new), Ok(OrderBilled { cents: 1250 }));
}

#[test]
fn what_the_upcast_misses_is_told() {
    let broken = codec::encode(&OrderBilled { cents: 1 }).unwrap();
    let decoded = OrderBilled::decode(OrderBilled::NAME, 1, &broken);
    assert_eq!(decoded, Err(DecodeError::Malformed("the field euros is missing".into())));
}

fn lift(_from: u32, _payload: Value) -> Result<Value, String> {
    Ok(Value::Null)
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "free_function", version = 3, upcast = self::lift)]
struct LiftedByAFunction;

#[test]
fn an_upcast_may_be_a_free_function() {
    let old = codec::encode("anything").unwrap();
    assert_eq!(LiftedByAFunction::decode("free_function", 2, &old), Ok(LiftedByAFunction));
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "own_upcast", version = 2, upcast = Self::upcast)]
struct LiftedByItsOwnUpcast;

impl LiftedByItsOwnUpcast {
    fn upcast(from: u32, payload: Value) -> Result<Value, String> {
        lift(from, payload)
    }
}

#[test]
fn an_upcast_may_be_called_upcast() {
    let old = codec::encode("anything").unwrap();
    assert_eq!(LiftedByItsOwnUpcast::decode("own_upcast", 1, &old), Ok(LiftedByItsOwnUpcast));
}

#[test]
fn a_key_of_text_is_borrowed() {
    let order = order();
    let key = order.partition_key();
    assert!(matches!(key, Some(Cow::Borrowed("o-17"))), "{key:?}");
}

type Text = String;

macro_rules! keyed_by {
    ($($event:ident($field:ty)),* $(,)?) => {$(
        #[derive(Clone, Serialize, Deserialize, Event)]
        #[event(crate = event_bus_core, name = "keyed", partition_key = 0)]
        struct $event($field, u8);
    )*};
}

keyed_by!(
    ByAlias(Text),
    ByCow(Cow<'static, str>),
    ByBox(Box<str>),
    ByNumber(i64),
    ByChar(char),
    ByTenant(TenantId)
);

#[test]
fn a_key_of_any_kind_of_text_is_borrowed() {
    assert!(matches!(ByAlias("a".into(), 0).partition_key(), Some(Cow::Borrowed("a"))));
    assert!(matches!(ByCow("a".into(), 0).partition_key(), Some(Cow::Borrowed("a"))));
    assert!(matches!(ByBox("a".into(), 0).partition_key(), Some(Cow::Borrowed("a"))));
}

/// Displayed otherwise than it is stored, as a `Uuid` is.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct TenantId(u32);

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tenant-{:04x}", self.0)
    }
}

#[test]
fn a_key_of_another_type_is_what_it_displays() {
    assert_eq!(ByNumber(-17, 0).partition_key().as_deref(), Some("-17"));
    assert_eq!(ByChar('ä', 0).partition_key().as_deref(), Some("ä"));
    assert_eq!(ByTenant(TenantId(0xab), 0).partition_key().as_deref(), Some("tenant-00ab"));
}

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "calls.call_ended", partition_key = r#type)]
struct CallEnded {
    r#type: String,
}

#[test]
fn a_field_with_the_name_of_a_keyword_can_be_the_key() {
    assert_eq!(CallEnded { r#type: "mobile".into() }.partition_key().as_deref(), Some("mobile"));
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "shop.door")]
enum Door {
    Opened { by: String },
    Closed,
}

#[test]
fn an_event_may_be_an_enum_and_has_no_key_unless_one_is_named() {
    let opened = Door::Opened { by: "Kim".into() };
    assert_eq!(opened.partition_key(), None);
    let payload = codec::encode(&opened).unwrap();
    assert_eq!(Door::decode("shop.door", 1, &payload), Ok(opened));
    assert_eq!(Door::Closed.partition_key(), None);
}

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(crate = event_bus_core, name = "shop.moved", partitioned)]
struct Moved {
    shop: u32,
    shelf: u32,
}

impl Partitioned for Moved {
    fn partition_key(&self) -> Option<Cow<'_, str>> {
        Some(format!("{}/{}", self.shop, self.shelf).into())
    }
}

#[test]
fn a_key_may_be_written_by_hand() {
    assert_eq!(Moved { shop: 3, shelf: 9 }.partition_key().as_deref(), Some("3/9"));
}
