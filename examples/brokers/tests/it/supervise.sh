# Runs one program in a session and a folder of its own. Standard input is a pipe from the test: when it breaks,
# because the test has ended in whatever way, every process of the session is killed with signal 9. The folder
# goes when they are gone.
trap '' HUP INT TERM
dir=$1
shift
cd "$dir" || exit
exec 3<&0 </dev/null 4>&2 2>/dev/null # the shell itself would say that they were killed
setsid "$@" 2>&4 3<&- 4>&- &
child=$!
{
    read -r _ <&3
    # It may not have its session yet, so repeat it.
    until kill -s KILL -- "-$child"; do sleep 0.1; done
} &
watch=$!
exec 3<&-
wait "$child"
status=$?
[ "$status" = 137 ] || tail -n 20 log >&4
# What it left behind goes too: epmd, for one. Then its folder can. Not for ever: what init does not reap stays.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    kill -s KILL -- "-$child" || break
    sleep 0.1
done
rm -rf "$dir"
kill -s KILL "$watch"
exit "$status"
