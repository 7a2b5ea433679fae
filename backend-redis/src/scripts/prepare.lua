-- Creates the bus, or says as what it was created.
-- Arguments: schema version, slots, the server's run id.
-- Returns: schema version and slots as stored.
-- Guarantees: a bus that is there is not changed.
call('HSETNX', base .. ':meta', 'schema', ARGV[1])
call('HSETNX', base .. ':meta', 'slots', ARGV[2])
call('HSETNX', base .. ':meta', 'run', ARGV[3])
return call('HMGET', base .. ':meta', 'schema', 'slots')
