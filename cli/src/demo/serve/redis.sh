# Runs one redis-server. Arguments: its folder, then the server's arguments. Standard input is a
# pipe from the program that uses the server: when it breaks for any reason, the server is killed
# and its folder removed.
trap '' HUP INT TERM
dir=$1
shift
exec 3<&0 </dev/null 2>/dev/null # or the shell would report that it was killed
redis-server --dir "$dir" "$@" >"$dir/log" 2>&1 3<&- &
server=$!
read -r _ <&3
kill -s KILL "$server"
wait "$server"
rm -rf "$dir"
