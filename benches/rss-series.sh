#!/usr/bin/env bash
# Resident memory of the relay by number of idle connections:
#
#     benches/rss-series.sh [CONNECTIONS...]
#
# For each number (1000 5000 10000 20000) a relay of its own is started, and the load tool
# swarm holds as many connections, one binary to four phones, for a minute, in which
# everything is pinged. Prints comma-separated values: the number, the resident memory
# before and with the connections in KiB, and the difference in bytes for each connection. The
# kernel's memory for sockets is not in it. Flags for the relay: RELAY_FLAGS; for the load
# tool: SWARM_FLAGS, such as "--client-pings 20".
set -euo pipefail
cd "$(dirname "$0")/.."

counts=("$@")
((${#counts[@]})) || counts=(1000 5000 10000 20000)
ulimit -n "$(ulimit -Hn)"
cargo build --quiet --release --bin pyrycode-relay --example swarm
target=${CARGO_TARGET_DIR:-target}/release
log=$(mktemp)
relay='' swarm=''
finish() {
    [[ -z $swarm ]] || kill "$swarm" 2>/dev/null || true
    [[ -z $relay ]] || kill "$relay" 2>/dev/null || true
    wait
    rm -f "$log"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
    echo "rss-series: $1" >&2
    cat "$log" >&2
    exit 1
}
resident() { awk '/^VmRSS/ { print $2 }' "/proc/$relay/status"; }

echo connections,empty_kib,full_kib,bytes_each
for count in "${counts[@]}"; do
    ((count >= 5)) || fail "$count: at least 5, one binary and its phones"
    # shellcheck disable=SC2086
    "$target/pyrycode-relay" --insecure-listen 127.0.0.1:0 --metrics-listen= \
        --rate-limit-per-minute 0 ${RELAY_FLAGS:-} 2>"$log" &
    relay=$!
    address=''
    for _ in {1..100}; do
        address=$(sed -n 's/.*msg=listening.* listen=\([^ ]*\).*/\1/p' "$log" | head -1)
        [[ -z $address ]] || break
        kill -0 "$relay" 2>/dev/null || fail 'the relay ended'
        sleep 0.1
    done
    [[ -n $address ]] || fail 'the relay does not listen'
    empty=$(resident)
    # shellcheck disable=SC2086
    "$target/examples/swarm" --binaries $((count / 5)) --phones 4 --seconds 60 --pid "$relay" \
        ${SWARM_FLAGS:-} "$address" >/dev/null 2>"$log" &
    swarm=$!
    # The largest value while they stay, pings included.
    full=0
    while kill -0 "$swarm" 2>/dev/null; do
        now=$(resident)
        ((now <= full)) || full=$now
        sleep 0.5
    done
    wait "$swarm" || fail 'connections were refused or lost'
    swarm=''
    echo "$((count / 5 * 5)),$empty,$full,$(((full - empty) * 1024 / (count / 5 * 5)))"
    kill "$relay"
    wait "$relay" || true
    relay=''
done
