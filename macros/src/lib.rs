//! derive(Event) and derive(Events).
