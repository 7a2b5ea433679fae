#!/usr/bin/env bash
# Builds images of Postgres, Redis and RabbitMQ from Debian packages, for machines that reach a Debian mirror but no image
# registry. They take the arguments, variables, files and ports that the official images take, as far as the tests use them.
#
# Needs: root, debootstrap, docker with its daemon. Prints the three variables that make the tests use the images.
# Options by environment: EVENT_BUS_DEBIAN_MIRROR (default: debootstrap's own), EVENT_BUS_DEBIAN_SUITE (bookworm).
set -euo pipefail

mirror=${EVENT_BUS_DEBIAN_MIRROR:-}
suite=${EVENT_BUS_DEBIAN_SUITE:-bookworm}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for tool in debootstrap docker; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install debootstrap docker.io" >&2; exit 1; }
done
docker version --format 'docker {{.Server.Version}}' || { echo "the docker daemon does not answer" >&2; exit 1; }

root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT

# Postgres must not run as root, Redis and RabbitMQ may: the packages bring the users.
debootstrap --variant=minbase --include=postgresql,redis-server,rabbitmq-server "$suite" "$root" ${mirror:+"$mirror"} >&2
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/var/lib/postgresql/*/main
install -m 755 "$here/entrypoint.sh" "$root/entrypoint.sh"

# build NAME PORTS COMMAND
build() {
    local changes=(--change 'ENTRYPOINT ["/entrypoint.sh"]' --change "CMD [\"$3\"]") port
    for port in $2; do changes+=(--change "EXPOSE $port"); done
    tar --directory "$root" --one-file-system --create . | docker import "${changes[@]}" - "event-bus-test-$1:$suite" >/dev/null
    docker run --rm "event-bus-test-$1:$suite" version >&2
}
build postgres 5432 postgres
build redis 6379 redis-server
build rabbitmq '5672 15672' rabbitmq-server

for engine in postgres redis rabbitmq; do
    echo "export EVENT_BUS_TEST_${engine^^}_IMAGE=event-bus-test-$engine:$suite"
done
