-- Which history this server's tables have: the system and its timeline, which is another one after a failover or a restore.
-- Result: this server's, and the one under which the leases were last given out (null if none was noted).
select (select system_identifier from pg_control_system())::text || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8),
    (select value from event_bus.meta where key = 'history')
