# Runs one redis-server. Called with its folder and its arguments. Standard input is a pipe from the program that
# wants the server: when it breaks, for whatever reason, the server is killed and its folder goes.
trap '' HUP INT TERM
dir=$1
shift
exec 3<&0 </dev/null 2>/dev/null # the shell itself would say that it was killed
redis-server --dir "$dir" "$@" >"$dir/log" 2>&1 3<&- &
server=$!
read -r _ <&3
kill -s KILL "$server"
wait "$server"
rm -rf "$dir"
