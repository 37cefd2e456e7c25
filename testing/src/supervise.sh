# Runs one temporary PostgreSQL. Arguments: the programs' directory, the server's directory, the
# server's arguments. Standard input is a pipe from the program that uses the server: when it breaks
# for any reason, the server is stopped. When the server ends for any reason, its directory is
# removed. If it failed, the end of its log goes to standard output.
trap '' HUP INT TERM
bin=$1 dir=$2 watch=
shift 2
exec 3<&0 </dev/null

"$bin/initdb" -D "$dir/data" -U postgres -A trust -E UTF8 --locale=C --no-sync >"$dir/log" 2>&1 && {
    "$bin/postgres" -D "$dir/data" "$@" >"$dir/log" 2>&1 3<&- &
    server=$!
    {
        read -r _ <&3
        # The first signal may come before the server handles signals, so repeat it.
        for signal in INT INT INT INT INT QUIT QUIT QUIT QUIT QUIT QUIT KILL; do
            kill -s "$signal" "$server" || exit
            sleep 1
        done
    } >/dev/null 2>&1 &
    watch=$!
    wait "$server"
}
status=$?

[ "$status" = 0 ] || tail -n 12 "$dir/log"
rm -rf "$dir"
[ -z "$watch" ] || kill -s KILL "$watch"
exit "$status"
