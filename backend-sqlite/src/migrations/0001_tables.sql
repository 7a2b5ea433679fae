-- The first schema.
--
-- A delivery's id is its handler's id times 2^43 plus a number that its handler hands out in the publishing
-- transaction (event_bus_handler.last_seq) and never twice. So one b-tree, without any other index, serves
-- the claims of every handler as a range scan in id order.
--
-- STRICT makes the file itself refuse a value of the wrong type.

create table event_bus_meta (
    key text primary key,
    value text not null
) strict, without rowid;

create table event_bus_handler (
    id integer primary key,
    name text not null unique,
    last_seq integer not null default 0
) strict;

-- Ready and running deliveries, and those that keep their place in their lane while they wait or hold their key.
create table event_bus_delivery (
    id integer primary key,
    event_id blob not null,
    name text not null,
    version integer not null,
    key text,
    payload blob not null,
    headers text,
    published_at integer not null,
    failures integer not null default 0,
    crashes integer not null default 0,
    started integer not null default 0,
    due_at integer,
    errors blob,
    is_parked integer not null default 0,
    is_held integer not null default 0
) strict;

-- The lanes behind a stuck head: by handler, key and (implied) id. Empty in good times.
create index event_bus_delivery_parked on event_bus_delivery (id >> 43, key) where is_parked;

-- Deliveries without a place: published with a delay, or waiting for a retry outside of any lane. A claim that finds
-- them due gives them a fresh id and a place at the end of their line.
create table event_bus_scheduled (
    id integer primary key,
    due_at integer not null,
    handler_id integer not null references event_bus_handler (id),
    event_id blob not null,
    name text not null,
    version integer not null,
    key text,
    payload blob not null,
    headers text,
    published_at integer not null,
    failures integer not null default 0,
    crashes integer not null default 0,
    errors blob
) strict;

create index event_bus_scheduled_due on event_bus_scheduled (due_at);

-- The dead letters. Ids are never used twice, so that a replay by id cannot hit a newer one.
create table event_bus_dead (
    id integer primary key autoincrement,
    handler_id integer not null references event_bus_handler (id),
    origin_id integer not null,
    event_id blob not null,
    name text not null,
    version integer not null,
    key text,
    payload blob not null,
    headers text,
    published_at integer not null,
    failures integer not null,
    crashes integer not null,
    errors blob,
    reason text not null,
    died_at integer not null,
    holds_key integer not null
) strict;

-- The idempotency keys that are remembered.
create table event_bus_dedupe (
    key text primary key,
    published_at integer not null
) strict, without rowid;

create index event_bus_dedupe_age on event_bus_dedupe (published_at);

-- What the present worker may hold in memory; empty after a clean end.
create table event_bus_worker (
    handler_id integer primary key references event_bus_handler (id),
    incarnation blob not null,
    window integer not null
) strict;
