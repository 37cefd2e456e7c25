# Runs one program in its own session and folder. Standard input is a pipe from the test: when it
# breaks because the test has ended in any way, every process of the session is killed with signal
# 9. Then the folder is removed.
trap '' HUP INT TERM
dir=$1
shift
cd "$dir" || exit
exec 3<&0 </dev/null 4>&2 2>/dev/null # or the shell would report the kills
setsid "$@" 2>&4 3<&- 4>&- &
child=$!
{
    read -r _ <&3
    # The program may not have its session yet, so repeat.
    until kill -s KILL -- "-$child"; do sleep 0.1; done
} &
watch=$!
exec 3<&-
wait "$child"
status=$?
[ "$status" = 137 ] || tail -n 20 log >&4
# Kills what the program left behind (epmd), so that its folder can be removed. Gives up after a
# second: processes that init does not reap stay.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    kill -s KILL -- "-$child" || break
    sleep 0.1
done
rm -rf "$dir"
kill -s KILL "$watch"
exit "$status"
