# Runs one program in a new folder. Standard input is a pipe from the test: when it breaks, because the test has
# ended in whatever way, the program is stopped. The folder goes with it.
trap '' HUP INT TERM
dir=$1
shift
cd "$dir" || exit
exec 3<&0 </dev/null
"$@" >log 2>&1 3<&- &
child=$!
{
    read -r _ <&3
    # At once: PostgreSQL and pgpool by the first, PgBouncer by the second.
    for signal in QUIT TERM; do kill -s "$signal" "$child"; done
    sleep 5
    kill -s KILL "$child"
} >/dev/null 2>&1 &
watch=$!
wait "$child"
status=$?
rm -rf "$dir"
kill -s KILL "$watch"
exit "$status"
