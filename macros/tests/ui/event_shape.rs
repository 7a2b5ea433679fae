use event_bus_macros::Event;

#[derive(Event)]
#[event(name = "e")]
struct OfAType<T> {
    content: T,
}

#[derive(Event)]
#[event(name = "e")]
struct OfALifetime<'a> {
    text: &'a str,
}

#[derive(Event)]
#[event(name = "e")]
struct OfANumber<const N: usize>([u8; N]);

#[derive(Event)]
#[event(name = "e")]
struct Where
where
    String: Clone;

#[derive(Event)]
#[event(name = "e")]
union Union {
    number: u32,
}

fn main() {}
