#!/usr/bin/env bash
# Where a running relay spends its CPU time:
#
#     benches/flamegraph.sh [PID [SECONDS [DIRECTORY]]]
#
# Samples the process (the newest pyrycode-relay, 10 s) with perf and leaves three files
# in DIRECTORY (target/flamegraph): perf.data, stacks.folded with one line for each stack
# and its count, and flamegraph.svg, if `inferno-flamegraph` is installed (cargo install
# inferno). Needs perf (Debian: linux-perf) and a kernel that lets this user sample
# (kernel.perf_event_paranoid, or root). Put the relay under load first.
set -euo pipefail
cd "$(dirname "$0")/.."

pid=${1:-$(pgrep -n -x pyrycode-relay || true)}
seconds=${2:-10}
directory=${3:-${CARGO_TARGET_DIR:-target}/flamegraph}
[[ -n $pid ]] || { echo "flamegraph: no pyrycode-relay is running; name a PID" >&2; exit 1; }
command -v perf >/dev/null || { echo "flamegraph: perf is missing: apt-get install linux-perf" >&2; exit 1; }

mkdir -p "$directory"
# The release build has line tables but no frame pointers, so stacks are unwound from
# copies of 16 KiB; 199 Hz keeps the file small.
perf record --quiet -F 199 --call-graph dwarf,16384 -o "$directory/perf.data" -p "$pid" -- sleep "$seconds"

# perf script: a header line for each sample, its frames from the innermost outwards, and
# a blank line. Folded: outermost first, joined by semicolons.
perf script -i "$directory/perf.data" --no-inline -F comm,ip,sym 2>/dev/null | awk '
    function finish(  i, stack) {
        if (comm == "") return
        stack = comm
        for (i = depth; i > 0; i--) stack = stack ";" frame[i]
        count[stack]++
        comm = ""
    }
    /^[^ \t]/ { finish(); comm = $1; depth = 0; next }
    NF == 0 { finish(); next }
    {
        sub(/^[ \t]*[0-9a-f]+[ \t]*/, "")
        sub(/\+0x[0-9a-f]+$/, "")
        gsub(/;/, ":")
        frame[++depth] = $0
    }
    END { finish(); for (stack in count) print stack, count[stack] }
' | sort >"$directory/stacks.folded"
[[ -s $directory/stacks.folded ]] || { echo "flamegraph: no samples: was the relay idle?" >&2; exit 1; }
echo "$directory/stacks.folded"

if command -v inferno-flamegraph >/dev/null; then
    inferno-flamegraph <"$directory/stacks.folded" >"$directory/flamegraph.svg"
    echo "$directory/flamegraph.svg"
else
    echo "no picture: cargo install inferno. The functions with most samples of their own:"
    perf report -i "$directory/perf.data" --no-children -g none --percent-limit 1 --stdio 2>/dev/null |
        grep -v '^#' | grep . || true
fi
