#!/usr/bin/env bash
# TLS of the relay beside that of other programs, in one run, in turns:
#
#     apt-get install haproxy nginx libnginx-mod-stream golang-go nodejs openssl
#     cargo build --release --bins --example swarm
#     benches/tls-fronts.sh [ROUNDS [CONNECTIONS]]
#
# HAProxy, nginx, Go and Node end TLS in front of a relay without it, each in one process with
# one thread, and only the CPU time and the memory of that process count; the relay that ends
# TLS by itself does the work of the WebSocket as well. Prints for each round, in this order:
# name, CPU of an upgrade with a full handshake, with a resumed one (both in µs), memory of an
# idle connection in bytes, CPU of a message of 256 bytes, 1 KiB and 16 KiB in µs.
set -euo pipefail
cd "$(dirname "$0")/.."
ulimit -n "$(ulimit -Hn)"

readonly rounds=${1:-3} connections=${2:-4000} plain=18601 front=18602
target=$(cd "${CARGO_TARGET_DIR:-target}/release" && pwd)
readonly target
work=$(mktemp -d)
pids=()
finish() {
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap finish EXIT

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
    -keyout "$work/key.pem" -out "$work/cert.pem" -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE 2>/dev/null
cat "$work/cert.pem" "$work/key.pem" >"$work/both.pem"
cat >"$work/haproxy.cfg" <<END
global
    nbthread 1
    maxconn 9000
    ssl-default-bind-options no-tlsv12
defaults
    mode tcp
    maxconn 9000
    timeout connect 5s
    timeout client 2m
    timeout server 2m
listen relay
    bind 127.0.0.1:$front ssl crt $work/both.pem
    server relay 127.0.0.1:$plain
END
cat >"$work/nginx.conf" <<END
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
master_process off;
pid $work/nginx.pid;
error_log /dev/null;
worker_rlimit_nofile $(ulimit -n);
events { worker_connections $(ulimit -n); }
stream {
    ssl_protocols TLSv1.3;
    ssl_session_cache shared:all:10m;
    server {
        listen 127.0.0.1:$front ssl;
        ssl_certificate $work/cert.pem;
        ssl_certificate_key $work/key.pem;
        proxy_pass 127.0.0.1:$plain;
        proxy_timeout 2m;
    }
}
END

relay() {
    exec "$target/pyrycode-relay" "$@" --metrics-listen= --rate-limit-per-minute 0 --log-level error
}

# The figure in the line that begins with $2, of the report $1.
figure() {
    awk -v name="$2" 'index($0, name) == 1 { print $(NF - 1) }' <<<"$1"
}

# measure NAME COMMAND...: one line of figures.
measure() {
    local name=$1 pid report line
    shift
    "$@" >/dev/null 2>&1 &
    pid=$!
    pids+=("$pid")
    for _ in {1..100}; do
        if openssl s_client -connect "127.0.0.1:$front" </dev/null >/dev/null 2>&1; then break; fi
        sleep 0.1
    done
    swarm() {
        "$target/examples/swarm" --tls --ca "$work/cert.pem" --pid "$pid" "$@" "127.0.0.1:$front"
    }
    report=$(swarm --name "$name" --binaries "$connections" --phones 0 --seconds 1)
    line="$name $(figure "$report" "relay: CPU for each upgrade")"
    line+=" $(figure "$(swarm --resume --name "$name-r" --binaries 1000 --phones 0 --seconds 1)" \
        "relay: CPU for each upgrade")"
    line+=" $(figure "$report" "relay: memory for each connection")"
    for bytes in 256 1024 16384; do
        report=$(swarm --name "$name-$bytes" --binaries 64 --phones 1 --in-flight 8 \
            --bytes "$bytes" --seconds 3)
        line+=" $(figure "$report" "relay: CPU for each message")"
    done
    echo "$line"
    kill "$pid"
    wait "$pid" 2>/dev/null || true
}

(relay --insecure-listen "127.0.0.1:$plain") &
pids+=("$!")
GO111MODULE=off go build -o "$work/front" benches/tls-fronts/front.go
for ((round = 0; round < rounds; round++)); do
    measure relay relay --tls-cert "$work/cert.pem" --tls-key "$work/key.pem" \
        --https-listen "127.0.0.1:$front"
    measure haproxy haproxy -db -f "$work/haproxy.cfg"
    measure nginx nginx -c "$work/nginx.conf" -p "$work"
    measure go env GOMAXPROCS=1 "$work/front" "$work" "$front" "$plain"
    measure node node benches/tls-fronts/front.cjs "$work" "$front" "$plain"
done
