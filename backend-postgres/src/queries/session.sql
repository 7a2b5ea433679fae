-- Prepares a worker's session: the server ends it by itself when the client is silent for longer than it is trusted.
-- Inputs: $1 milliseconds of silence.
-- Result: the server's version, whether it is a standby, and the statement time-out that was asked for at the start of the
--   session: another value means that something between us and the server does not pass sessions on.
select current_setting('server_version_num')::int4, pg_is_in_recovery(), current_setting('statement_timeout'),
    case when current_setting('server_version_num')::int4 >= 140000
        then set_config('idle_session_timeout', $1::int8::text, false) end,
    set_config('tcp_user_timeout', $1::int8::text, false)
