use event_bus_macros::Event;

#[derive(Event)]
struct Nameless;

#[derive(Event)]
#[event(name = "")]
struct Empty;

#[derive(Event)]
#[event(name = "order placed")]
struct Spaced;

#[derive(Event)]
#[event(name = "bestellung.größer")]
struct NotAscii;

#[derive(Event)]
#[event(name = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn")]
struct TooLong;

#[derive(Event)]
#[event(name = ORDER_PLACED)]
struct NoLiteral;

#[derive(Event)]
#[event(name)]
struct NoValue;

#[derive(Event)]
#[event(name("orders.placed"))]
struct InBrackets;

#[derive(Event)]
#[event(name = "orders.placed", name = "orders.created")]
struct Twice;

#[derive(Event)]
#[event(name = "orders.placed", alias = "orders placed")]
struct BadAlias;

#[derive(Event)]
#[event(name = "orders.placed", alias = "orders.placed", alias = "old", alias = "old")]
struct SameAlias;

fn main() {}
