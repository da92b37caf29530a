#!/usr/bin/env bash
# Measures what docs/benchmarks.md says, against Debian's nginx where there is something to compare.
#
#     scripts/bench.sh [WHAT...] [--seconds N] [--rounds N] [--markdown] [--update]
#                      [--against BATOND] [--program COMMAND]
#
# WHAT is one or more of these, or all of them (the default):
#
#     keepalive  CPU per request with 32 keep-alive connections, against nginx; -w 8 against -w 2
#     close      the same with a new connection for each request
#     limit      a new connection for each request, against workers that share the listener
#     workers    CPU per request with 2 to 256 workers
#     parked     CPU per request beside 15,000 parked connections
#     tail       latency of fast requests beside slow ones
#     disturbed  latency while somebody outside disturbs the master
#     kill       kill -9 of a random worker every 0.1 s: what clients see of it
#     stop       SIGSTOP of one of four workers: who waits
#     idle       the master's memory, and latency, beside 18,000 idle connections
#     pass       CPU per request that is passed to another pool
#     builds     CPU per request, against the build that --against names; not part of all
#     slow       latency beside slow clients, and what these cost the server; not part of all: it
#                takes half an hour, with --seconds 5 --rounds 1 two minutes
#
# --seconds is how long one measurement takes, --rounds how often the candidates take turns.
# --program is a server that `slow` tries as well. It has two workers, logs and answers as
# docs/examples/stream.rs does; POST /echo is what slow bodies are sent to.
# --markdown prints tables for a document, --update puts them into docs/benchmarks.md.
#
# All traffic is on the loopback device. Exits 1 if something failed, never because a figure misses
# its target; 2 if it cannot begin.
set -euo pipefail

fail() {
    printf 'bench: %s\n' "$2" >&2
    exit "$1"
}

for argument; do
    if [[ $argument == -h || $argument == --help ]]; then
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        exit 0
    fi
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# need COMMAND PACKAGE WHY
need() {
    command -v "$1" >/dev/null ||
        fail 2 "$1 is missing; $3. On Debian and Ubuntu: apt-get install $2"
}
# Debian has nginx where only root looks for programs.
PATH=$PATH:/usr/sbin:/sbin
need python3 python3 "it runs the measurements"
need wrk wrk "it makes the requests"
need nginx nginx-light "it is what Baton is compared with"
need cc build-essential "it compiles the client and the reference of tests/bench"
need cargo cargo "it builds batond"

cd "$root"
python3 -B scripts/bench/main.py --check "$@" || exit 2

cargo build --quiet --release --locked
target=$(cargo metadata --format-version 1 --no-deps --locked |
    sed 's/.*"target_directory":"\([^"]*\)".*/\1/')

# The servers and the clients each hold thousands of connections.
ulimit -n "$(ulimit -Hn)"

scratch=$(mktemp -d)
measurements=
# main.py ends all that it has started; this ends main.py.
cleanup() {
    if [[ -n $measurements ]]; then
        kill -TERM "$measurements" 2>/dev/null || true
        wait "$measurements" 2>/dev/null || true
    fi
    rm -rf "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for program in client bare_limit; do
    cc -std=gnu17 -O2 -Wall -Wextra -o "$scratch/$program" "tests/bench/$program.c"
done

# In the background, for a trap is not run before a command in the foreground has ended.
python3 -B scripts/bench/main.py --batond "$target/release/batond" --scratch "$scratch" "$@" &
measurements=$!
status=0
wait "$measurements" || status=$?
measurements=
((status == 0)) || exit "$status"
