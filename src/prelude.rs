//! Everything that events, handlers and a bus need: `use event_bus::prelude::*;`.
//!
//! `Serialize` and `Deserialize` are serde's own derives; what they write refers to `serde`, which therefore stands in
//! your `Cargo.toml` as well: `serde = { version = "1", features = ["derive"] }`.
//!
//! # Events
//!
//! ```
//! use event_bus::prelude::*;
//!
//! #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
//! #[event(name = "orders.order_created", partition_key = order_id)]
//! pub struct OrderCreated {
//!     pub order_id: String,
//!     pub total: u64,
//! }
//!
//! #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
//! #[event(name = "orders.order_cancelled", partition_key = order_id)]
//! pub struct OrderCancelled {
//!     pub order_id: String,
//! }
//!
//! /// What one handler takes: events of one order reach it in order, whatever their type.
//! #[derive(Events)]
//! pub enum OrderEvent {
//!     Created(OrderCreated),
//!     Cancelled(OrderCancelled),
//! }
//!
//! let event = OrderCreated { order_id: "A-17".into(), total: 4_200 };
//! assert_eq!(event.partition_key().as_deref(), Some("A-17"));
//! assert_eq!(OrderCreated::NAME, "orders.order_created");
//! assert_eq!(OrderEvent::names(), ["orders.order_created", "orders.order_cancelled"]);
//! ```
//!
//! # Handlers and the bus
//!
//! ```
//! use std::time::Duration;
//!
//! use event_bus::InlineBackend;
//! use event_bus::prelude::*;
//! # #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
//! # #[event(name = "orders.order_created", partition_key = order_id)]
//! # pub struct OrderCreated { pub order_id: String, pub total: u64 }
//! # #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
//! # #[event(name = "orders.order_cancelled", partition_key = order_id)]
//! # pub struct OrderCancelled { pub order_id: String }
//! # #[derive(Events)]
//! # pub enum OrderEvent { Created(OrderCreated), Cancelled(OrderCancelled) }
//!
//! pub struct Invoicing;
//!
//! #[async_trait]
//! impl Handler for Invoicing {
//!     const NAME: &'static str = "finances.invoicing";
//!     type Event = OrderEvent;
//!     type Output = ();
//!
//!     /// Pure; asked inside `publish`, before anything is stored.
//!     fn interested(&self, event: &OrderEvent) -> bool {
//!         !matches!(event, OrderEvent::Created(order) if order.total == 0)
//!     }
//!
//!     fn options(&self) -> HandlerOptions {
//!         HandlerOptions::new().max_attempts(10).timeout(Duration::from_secs(5))
//!     }
//!
//!     async fn handle(&self, event: OrderEvent, cx: &Context) -> Result<(), Failure> {
//!         match event {
//!             OrderEvent::Created(order) if order.total > 1_000_000 => {
//!                 // Straight to the dead letters; `?` on any error tries again later.
//!                 return Err(Failure::discard("a person must look at this"));
//!             }
//!             OrderEvent::Created(order) => println!("attempt {}: {} owes {}", cx.attempt(), order.order_id, order.total),
//!             OrderEvent::Cancelled(order) => println!("{} owes nothing", order.order_id),
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # async fn run() -> event_bus::Result<()> {
//! let bus = EventBus::builder()
//!     .handler(Invoicing)
//!     .handle_fn("mail.thanks", |order: OrderCreated| async move {
//!         println!("thank you for {}", order.order_id);
//!         Ok(())
//!     })
//!     // Or `event_bus::SqliteBackend`: the same code, and every delivery survives a crash.
//!     .backend(InlineBackend::new())
//!     .build()?;
//! bus.migrate().await?;
//!
//! let created = OrderCreated { order_id: "A-17".into(), total: 4_200 };
//! let cancelled = OrderCancelled { order_id: "A-17".into() };
//! bus.publish(&created).await?;
//! bus.publish_all(&[created.clone(), created.clone()]).await?;
//! // Several types, one atomic call.
//! let receipt = bus.publish(&created).and(&cancelled).await?;
//! assert_eq!(receipt.deliveries(), 3);
//!
//! let worker = bus.start().await?;
//! worker.shutdown(Duration::from_secs(30)).await?;
//! # Ok(())
//! # }
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run()).unwrap();
//! ```

pub use event_bus_core::{
    Backoff, Context, Event, EventBus, Events, Exhausted, Failure, Handler, HandlerOptions, Order,
    Partitioned, async_trait,
};
#[cfg(feature = "derive")]
pub use event_bus_macros::{Event, Events};
pub use serde::{Deserialize, Serialize};

pub use crate::Connect;
#[cfg(feature = "testing")]
pub use crate::testing::{
    Fault, InTest, Mode, Ran, TestSession, TestingBackend, assert_event_published, assert_no_events,
    refute_event_published, run_event,
};
