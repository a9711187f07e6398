#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:256MiB
ringway volume create v 64MiB >/dev/null
allocated() { ringway volume show v --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["allocated"])'; }
is() { [ "$(allocated)" -eq "$1" ]; }
io "$tcp/v" 'write -P 1 0 8M'
wait_for "8 MiB are taken" is $((8 << 20))
more=(-d unmap)
io "$tcp/v" 'discard 0 4M' 'read -P 0 0 4M'
wait_for "4 MiB are taken" is $((4 << 20))
io openvstorage:v 'write -z -u 4M 4M' 'read -P 0 4M 4M'
wait_for "nothing is taken" is 0
