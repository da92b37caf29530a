#!/usr/bin/env bash
# Starts a server, loads it with wrk, prints what came of it, and ends the server.
#
#     scripts/load-test.sh [WORKERS] [CONNECTIONS] [SECONDS]      4 64 10 unless told
#
# Two runs of SECONDS each: with keep-alive, then with a new connection for each request. The CPU
# time is that of the server's whole process tree. Exits 1 if a request failed, if the server said
# a warning, or if it did not stop in order; 2 if it cannot begin.
set -euo pipefail

fail() {
    local code=$1
    shift
    printf 'load-test: %s\n' "$*" >&2
    exit "$code"
}

# number NAME VALUE MAXIMUM
number() {
    [[ $2 =~ ^[1-9][0-9]{0,5}$ && $2 -le $3 ]] ||
        fail 2 "$1 must be a whole number from 1 to $3, not '$2' (usage: load-test.sh [WORKERS] [CONNECTIONS] [SECONDS])"
}

[[ $# -le 3 ]] || fail 2 "three arguments at most: [WORKERS] [CONNECTIONS] [SECONDS]"
workers=${1:-4}
connections=${2:-64}
seconds=${3:-10}
number WORKERS "$workers" 1024
number CONNECTIONS "$connections" 20000
number SECONDS "$seconds" 3600

command -v wrk >/dev/null ||
    fail 2 "wrk is missing; it makes the requests. On Debian and Ubuntu: apt-get install wrk"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cargo build --quiet --release --locked --manifest-path "$root/Cargo.toml"
target=$(cargo metadata --format-version 1 --no-deps --locked --manifest-path "$root/Cargo.toml" |
    sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
server_binary=$target/release/batond

# wrk, the server, and this script each hold the connections.
ulimit -n "$(ulimit -Hn)"

scratch=$(mktemp -d)
server=
clients=
drain=

# Ends what still runs, whatever happened; normally all have ended before.
cleanup() {
    local process
    for process in $clients $server; do
        kill -KILL "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
    if [[ -n $drain ]]; then
        wait "$drain" 2>/dev/null || true
    fi
    rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What wrk counts, on one line: requests, microseconds, errors of connect, read, write, status and
# time, and the latency in microseconds.
cat >"$scratch/report.lua" <<'LUA'
function done(summary, latency)
    local errors = summary.errors
    io.write(string.format("RESULT %d %d %d %d %d %d %d %d %d %d %d\n",
        summary.requests, summary.duration,
        errors.connect, errors.read, errors.write, errors.status, errors.timeout,
        latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max))
end
LUA

log=$scratch/log
mkfifo "$scratch/stderr"
env -u RUST_LOG "$server_binary" serve demo -w "$workers" -l 127.0.0.1:0 2>"$scratch/stderr" &
server=$!
exec {from_server}<"$scratch/stderr"
address=
while [[ -z $address ]]; do
    if ! IFS= read -r -t 30 line <&"$from_server"; then
        cat "$log" >&2 2>/dev/null || true
        fail 1 "the server did not say where it listens"
    fi
    printf '%s\n' "$line" >>"$log"
    [[ $line != *"listening on "* ]] || address=${line##*listening on }
done
cat <&"$from_server" >>"$log" &
drain=$!
exec {from_server}<&-

# Clock ticks that the server's processes have used so far; those of the dead count in the master.
ticks() {
    local stat
    for stat in /proc/[0-9]*/stat; do
        cat "$stat" 2>/dev/null || true
    done | awk -v master="$server" '{
        pid = $1
        sub(/^.*\) /, "")
        if (pid == master) sum += $12 + $13 + $14 + $15
        else if ($2 == master) sum += $12 + $13
    } END { print sum + 0 }'
}

failed=0

# measure NAME [WRK OPTION...]
measure() {
    local name=$1 threads before after result
    shift
    threads=$(nproc)
    ((threads <= connections)) || threads=$connections
    before=$(ticks)
    # In the background, for a trap is not run before a command in the foreground has ended.
    wrk -t "$threads" -c "$connections" -d "${seconds}s" --timeout 10s -s "$scratch/report.lua" \
        "$@" "http://$address/" >"$scratch/wrk" 2>&1 &
    clients=$!
    if ! wait "$clients"; then
        cat "$scratch/wrk" >&2
        fail 1 "wrk did not end in order"
    fi
    clients=
    after=$(ticks)
    result=$(grep '^RESULT ' "$scratch/wrk") || fail 1 "wrk gave no result"
    awk -v name="$name" -v ticks=$((after - before)) -v hertz="$(getconf CLK_TCK)" '{
        requests = $2; failures = $4 + $5 + $6 + $7 + $8
        cpu = requests && ticks > 0 ? ticks / hertz * 1e6 / requests : 0
        printf "%-24s %10.0f %9.2f %9.2f %9.2f %9.2f %12.1f %9d\n", name, requests / ($3 / 1e6),
            $9 / 1e3, $10 / 1e3, $11 / 1e3, $12 / 1e3, cpu, failures
        if (failures)
            printf "  errors: connect %d, read %d, write %d, status %d, timeout %d\n", $4, $5, $6, $7, $8
        if (failures || !requests) exit 1
    }' <<<"$result" || failed=1
}

printf 'demo with %s workers, %s connections, %s s each, on %s CPUs\n\n' \
    "$workers" "$connections" "$seconds" "$(nproc)"
printf '%-24s %10s %9s %9s %9s %9s %12s %9s\n' \
    '' 'requests/s' 'p50 ms' 'p90 ms' 'p99 ms' 'max ms' 'CPU us/req' 'failures'
measure 'keep-alive'
measure 'connection per request' -H 'Connection: close'

kill -TERM "$server" 2>/dev/null || true
status=0
wait "$server" || status=$?
server=
wait "$drain"
drain=
((status == 0)) || { failed=1 && printf 'load-test: the server ended with status %d\n' "$status" >&2; }
if grep -E 'WARN|ERROR|panicked' "$log" >&2; then
    failed=1
    printf 'load-test: the server said what stands above\n' >&2
fi
((failed == 0)) || fail 1 "there were failures"
