# Keeps a server: waits until nobody needs it any more, then kills it and removes what it leaves.
#
# Guarantees: the server lives while any process holds a shared lock on LOCK, and for GRACE seconds after that; then all
#   processes whose working directory is in DIRECTORY are killed, the container is removed, and so is DIRECTORY. Whoever
#   waits for a shared lock meanwhile gets it when all of that is done.
# Arguments: LOCK GRACE DIRECTORY STATE CONTAINER. STATE is the file that tells others of the server (removed if it names
#   DIRECTORY), or empty; CONTAINER is the name of a Docker container, or empty.
# Needs: flock (util-linux); docker if there is a container.

lock=$1 grace=$2 directory=$3 state=$4 container=$5
cd /

while :; do
    # A lock of our own is to be had when nobody else has one.
    flock "$lock" true
    sleep "$grace"
    exec 9>>"$lock"
    flock --nonblock 9 && break
    exec 9>&-
done

if [ -n "$state" ] && grep -q -F "$directory" "$state" 2>/dev/null; then
    rm -f "$state"
fi
if [ -n "$container" ]; then
    docker rm --force --volumes "$container" >/dev/null 2>&1
fi

# Those whose working directory is there. Root in a container may not see that of another user's process; of such a one
# the command line tells.
roots() {
    ls -l /proc/[0-9]*/cwd 2>/dev/null | while read -r line; do
        case $line in
        *" -> $directory" | *" -> $directory/"*) found=yes ;;
        *" -> "*) found= ;;
        *)
            pid=${line##*/proc/}
            found=$(grep -l -F -e "$directory" "/proc/${pid%/cwd}/cmdline" 2>/dev/null)
            ;;
        esac
        [ -z "$found" ] && continue
        pid=${line##* /proc/}
        echo "${pid%%/cwd*}"
    done
}
# And their children, and theirs.
processes() {
    all=" $(roots | tr '\n' ' ')"
    parents=$(sed -n 's/^\([0-9]*\) (.*) [^Z] \([0-9]*\) .*/\1 \2/p' /proc/[0-9]*/stat 2>/dev/null)
    while :; do
        before=$all
        while read -r pid parent; do
            case $all in
            *" $pid "*) ;;
            *" $parent "*) all="$all$pid " ;;
            esac
        done <<EOT
$parents
EOT
        [ "$all" = "$before" ] && break
    done
    echo "$all" | tr -d '\n' | sed 's/^ *//'
}
for round in 1 2 3 4 5 6 7 8 9 10; do
    pids=$(processes)
    [ -n "$pids" ] || break
    kill -KILL $pids 2>/dev/null
    sleep 0.1
done
rm -rf "$directory"
