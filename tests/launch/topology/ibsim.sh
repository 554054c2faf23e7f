#!/usr/bin/env bash
# ibsim.sh FILE OUT: simulates the fabric of FILE (ibnetdiscover's own output is ibsim's input) and writes what the real
# ibnetdiscover finds in it to OUT. Exit code 77: it cannot run here, with the reason on standard output.
set -u
file=$1 out=$2
for program in ibsim ibsim-run ibnetdiscover unshare; do
  command -v "$program" >/dev/null || { echo "no $program here (Debian: ibsim-utils, infiniband-diags)"; exit 77; }
done
# ibsim listens on abstract sockets: one simulator a network namespace.
if [ -z "${R1RUN_IBSIM_INSIDE:-}" ]; then
  unshare -n true 2>/dev/null || { echo "no privilege for a network namespace"; exit 77; }
  R1RUN_IBSIM_INSIDE=1 exec unshare -n "$0" "$file" "$out"
fi
dir=$(mktemp -d)
trap 'kill "$simulator" 2>/dev/null; rm -r "$dir"' EXIT
mkfifo "$dir/in"
exec 3<>"$dir/in" # the console: ibsim ends when it is closed
ibsim -s -n "$file" <"$dir/in" >"$dir/log" 2>&1 &
simulator=$!
host=$(grep -m1 -oE '^Ca.*"H-[0-9a-f]+"' "$file" | grep -oE 'H-[0-9a-f]+')
for _ in $(seq 30); do
  SIM_HOST=$host timeout 60 ibsim-run ibnetdiscover >"$out" 2>"$dir/error" && [ -s "$out" ] && exit 0
  sleep 0.5
done
tail -3 "$dir/log" "$dir/error"
exit 1
