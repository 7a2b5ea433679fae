use event_bus_macros::Event;

#[derive(Event)]
#[event(name = "e", version = 0)]
struct Zero;

#[derive(Event)]
#[event(name = "e", version = 4294967296, upcast = lift)]
struct TooLarge;

#[derive(Event)]
#[event(name = "e", version = -1)]
struct Negative;

#[derive(Event)]
#[event(name = "e", version = "2", upcast = lift)]
struct Text;

#[derive(Event)]
#[event(name = "e", version = 2)]
struct NoUpcast;

#[derive(Event)]
#[event(name = "e", upcast = lift)]
struct NoVersion;

#[derive(Event)]
#[event(name = "e", version = 1, upcast = lift)]
struct NothingOlder;

#[derive(Event)]
#[event(name = "e", version = 2, upcast = |_, payload| Ok(payload))]
struct Closure;

fn main() {}
