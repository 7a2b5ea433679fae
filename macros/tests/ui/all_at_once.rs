use event_bus_macros::{Event, Events};

#[derive(Event)]
#[event(name = "order placed", alias = "", key = id, version = 3)]
struct Order<T> {
    #[event(redact)]
    id: T,
}

#[derive(Events)]
#[event(name = "orders")]
enum OrderEvent<T> {
    Nothing,
    Two(A, B),
    One(A),
    #[event(skip)]
    Again(A),
}

fn main() {}
