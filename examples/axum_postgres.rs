//! A web service over PostgreSQL: an order and its event are stored in one transaction, a worker beside the service writes
//! the invoice and acknowledges the event in one transaction as well.
//!
//! ```console
//! DATABASE_URL=postgres://user:password@localhost/shop cargo run --example axum_postgres
//! curl -X POST localhost:3000/orders -H 'content-type: application/json' -d '{"customer": "anna", "total": 1200}'
//! curl localhost:3000/orders/1
//! curl -i localhost:3000/ready
//! ```
//!
//! `SIGTERM` (or ctrl-c) ends it in peace: it says that it is not ready any more, answers what it has begun, lets running
//! handlers end, gives the rest back to the other workers at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use event_bus::prelude::*;
use sqlx::PgPool;

/// How long running handlers may take when the service ends.
const GRACE: Duration = Duration::from_secs(25);

#[derive(Clone, Debug, Serialize, Deserialize, Event)]
#[event(name = "shop.order_placed", partition_key = customer)]
struct OrderPlaced {
    order: i64,
    customer: String,
    total: i64,
}

/// Writes invoices: exactly one an order, for the invoice and the acknowledgement are one transaction.
struct Invoicing {
    pool: PgPool,
}

#[async_trait]
impl Handler for Invoicing {
    const NAME: &'static str = "billing.invoicing";
    type Event = OrderPlaced;
    type Output = ();

    async fn handle(&self, event: OrderPlaced, cx: &Context) -> Result<(), Failure> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query("insert into invoice (order_id, total) values ($1, $2)")
            .bind(event.order)
            .bind(event.total)
            .execute(&mut *transaction)
            .await?;
        // From here on the delivery is done if and only if the invoice is written.
        cx.complete_in(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(())
    }
}

#[derive(Clone)]
struct Shop {
    pool: PgPool,
    bus: EventBus,
    is_ready: Arc<AtomicBool>,
}

#[derive(Deserialize)]
struct NewOrder {
    customer: String,
    total: i64,
}

#[derive(Serialize)]
struct Order {
    id: i64,
    customer: String,
    total: i64,
    is_invoiced: bool,
}

type Answer<T> = Result<T, (StatusCode, String)>;

fn broken(error: impl std::error::Error) -> (StatusCode, String) {
    eprintln!("{error}");
    (StatusCode::INTERNAL_SERVER_ERROR, "try again later".to_owned())
}

/// The order is there if and only if its event is: both commit together.
async fn place_order(State(shop): State<Shop>, Json(new): Json<NewOrder>) -> Answer<(StatusCode, Json<i64>)> {
    let mut transaction = shop.pool.begin().await.map_err(broken)?;
    let order: i64 = sqlx::query_scalar("insert into orders (customer, total) values ($1, $2) returning id")
        .bind(&new.customer)
        .bind(new.total)
        .fetch_one(&mut *transaction)
        .await
        .map_err(broken)?;
    let event = OrderPlaced { order, customer: new.customer, total: new.total };
    shop.bus.publish(&event).within(&mut *transaction).await.map_err(broken)?;
    transaction.commit().await.map_err(broken)?;
    Ok((StatusCode::CREATED, Json(order)))
}

async fn show_order(State(shop): State<Shop>, Path(id): Path<i64>) -> Answer<Json<Order>> {
    let row: Option<(i64, String, i64, bool)> = sqlx::query_as(
        "select id, customer, total, exists (select from invoice where order_id = id) from orders where id = $1",
    )
    .bind(id)
    .fetch_optional(&shop.pool)
    .await
    .map_err(broken)?;
    let (id, customer, total, is_invoiced) =
        row.ok_or((StatusCode::NOT_FOUND, "no such order".to_owned()))?;
    Ok(Json(Order { id, customer, total, is_invoiced }))
}

/// Whether requests should be sent here: the service is not ending, and its database answers.
async fn ready(State(shop): State<Shop>) -> StatusCode {
    let is_ready = shop.is_ready.load(Ordering::Acquire);
    if is_ready && sqlx::query("select 1").execute(&shop.pool).await.is_ok() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// Resolves when the operating system asks the service to end.
async fn asked_to_end(is_ready: Arc<AtomicBool>) {
    let interrupted = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminated) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = interrupted => {}
                _ = terminated.recv() => {}
            }
        } else {
            let _ = interrupted.await;
        }
    }
    #[cfg(not(unix))]
    let _ = interrupted.await;
    is_ready.store(false, Ordering::Release);
}

const TABLES: &str = "
    create table if not exists orders (id bigserial primary key, customer text not null, total bigint not null);
    create table if not exists invoice (order_id bigint primary key, total bigint not null);
";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("DATABASE_URL")
        .map_err(|_| "set DATABASE_URL=postgres://user:password@host/database")?;
    let address = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let pool = PgPool::connect(&url).await?;
    sqlx::raw_sql(TABLES).execute(&pool).await?;

    let bus = EventBus::builder().connect(&url).await?.handler(Invoicing { pool: pool.clone() }).build()?;
    // Any number of instances may do this at once.
    bus.migrate().await?;
    let worker = bus.start().await?;

    let is_ready = Arc::new(AtomicBool::new(true));
    let shop = Shop { pool, bus, is_ready: is_ready.clone() };
    let routes = Router::new()
        .route("/orders", post(place_order))
        .route("/orders/{id}", get(show_order))
        .route("/ready", get(ready))
        .with_state(shop);
    let listener = tokio::net::TcpListener::bind(&address).await?;
    eprintln!("listening on {address}");
    axum::serve(listener, routes).with_graceful_shutdown(asked_to_end(is_ready)).await?;

    // No request is under way any more: now the worker ends, and nothing of its work is repeated.
    worker.shutdown(GRACE).await?;
    Ok(())
}
