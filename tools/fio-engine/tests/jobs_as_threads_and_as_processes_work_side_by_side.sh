#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:512MiB
ringway volume create v 128MiB >/dev/null
jobs=(--volume=v --numjobs=4 --size=16m --offset_increment=16m --rw=randrw --bs=4k --iodepth=8 --verify=crc32c --verify_fatal=1)
engine "${jobs[@]}"
engine "${jobs[@]}" --thread=0
