use event_bus_macros::Event;

#[derive(Event)]
#[event(name = "e", key = id)]
struct UnknownKey {
    id: String,
}

#[derive(Event)]
#[event(name = "e", redact(id))]
struct UnknownList {
    id: String,
}

#[derive(Event)]
#[event(name = "e")]
struct OnAField {
    #[event(redact)]
    card: String,
}

#[derive(Event)]
#[event(name = "e")]
enum OnAVariant {
    #[event(name = "e.one")]
    One {
        #[event(redact)]
        card: String,
    },
}

#[derive(Event)]
#[event(name = "e", crate = "event_bus")]
struct QuotedCrate;

#[derive(Event)]
#[event]
struct NoList;

#[derive(Event)]
#[event = "e"]
struct NotAList;

#[derive(Event)]
#[event("e")]
struct NoKey;

#[derive(Event)]
#[event(name = "e" version = 1)]
struct NoComma;

fn main() {}
