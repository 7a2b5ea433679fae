use event_bus_macros::Event;

#[derive(Event)]
#[event(name = "e", partition_key = order_id)]
struct NoSuchField {
    id: String,
    total: u64,
}

#[derive(Event)]
#[event(name = "e", partition_key = 2)]
struct NoSuchIndex(String, u64);

#[derive(Event)]
#[event(name = "e", partition_key = id)]
struct NoField;

#[derive(Event)]
#[event(name = "e", partition_key = "id")]
struct Quoted {
    id: String,
}

#[derive(Event)]
#[event(name = "e", partition_key = self.order.id)]
struct Deep {
    order: Order,
}

#[derive(Event)]
#[event(name = "e", partition_key = Self::id)]
struct Method {
    id: String,
}

#[derive(Event)]
#[event(name = "e", partition_key = id)]
enum Enum {
    One { id: String },
}

#[derive(Event)]
#[event(name = "e", partition_key = id, partitioned)]
struct Both {
    id: String,
}

#[derive(Event)]
#[event(name = "e", partitioned = true)]
struct NoFlag;

fn main() {}
