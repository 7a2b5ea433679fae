#!/bin/sh
# What the official images do with their arguments, as far as the tests use it: the server in the foreground as process 1,
# on all interfaces; Postgres initialised at the first start, trusting everybody (POSTGRES_HOST_AUTH_METHOD=trust).
set -e
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
export PATH="$bin:/usr/lib/rabbitmq/bin:$PATH"

case $1 in
postgres)
    data=/var/lib/postgresql/data
    run="setpriv --reuid=postgres --regid=postgres --init-groups"
    if [ ! -s "$data/PG_VERSION" ]; then
        install -d -o postgres -g postgres -m 700 "$data"
        $run initdb --no-sync --auth=trust --encoding=UTF8 --locale=C --username=postgres --pgdata="$data"
        echo 'host all all all trust' >>"$data/pg_hba.conf"
    fi
    shift
    exec $run postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories='' "$@"
    ;;
redis-server)
    shift
    mkdir -p /data
    cd /data
    exec redis-server --bind 0.0.0.0 --protected-mode no "$@"
    ;;
rabbitmq-server)
    shift
    export HOME=/var/lib/rabbitmq RUNNING_UNDER_SYSTEMD=true RABBITMQ_LOGS=-
    exec rabbitmq-server "$@"
    ;;
version)
    echo "$(postgres --version), $(redis-server --version | cut -d ' ' -f 1-3), RabbitMQ $(ls /usr/lib/rabbitmq/lib)"
    ;;
*)
    exec "$@"
    ;;
esac
