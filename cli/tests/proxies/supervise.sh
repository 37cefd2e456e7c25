# Runs one program in a new folder. Standard input is a pipe from the test. When the test ends,
# however it ends, the pipe breaks and the program is stopped. Then the folder is removed.
trap '' HUP INT TERM
dir=$1
shift
cd "$dir" || exit
exec 3<&0 </dev/null
"$@" >log 2>&1 3<&- &
child=$!
{
    read -r _ <&3
    # QUIT stops PostgreSQL and pgpool at once, TERM stops PgBouncer.
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
