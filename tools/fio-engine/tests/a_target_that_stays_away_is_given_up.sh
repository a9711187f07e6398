#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:256MiB
ringway volume create v 64MiB >/dev/null
(sleep 2; kill -9 "$target") &
begun=$SECONDS
fails 'connecting again' --volume=v --rw=randread --bs=4k --size=64m --time_based --runtime=60 --iodepth=8 --reconnect=3
[ $((SECONDS - begun)) -lt 30 ] || { echo "it took $((SECONDS - begun)) s" >&2; exit 1; }
