use event_bus_macros::Events;

#[derive(Events)]
struct Struct(OrderPlaced);

#[derive(Events)]
union Union {
    placed: OrderPlaced,
}

#[derive(Events)]
enum Empty {}

#[derive(Events)]
enum Unit {
    Placed(OrderPlaced),
    Cancelled,
    Shipped(),
}

#[derive(Events)]
enum ManyFields {
    Placed(OrderPlaced, OrderShipped),
}

#[derive(Events)]
enum NamedField {
    Placed { event: OrderPlaced },
}

#[derive(Events)]
enum SameType {
    Placed(orders::OrderPlaced),
    Shipped(orders::OrderShipped),
    Created(orders::OrderPlaced),
}

#[derive(Events)]
enum Generic<E> {
    Any(E),
}

#[derive(Events)]
enum Where
where
    OrderPlaced: Sized,
{
    Placed(OrderPlaced),
}

fn main() {}
