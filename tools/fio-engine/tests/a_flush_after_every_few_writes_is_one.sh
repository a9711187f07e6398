#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool "$work/pool" --pool-size 256MiB
ringway volume create v 64MiB >/dev/null
engine --volume=v --rw=randwrite --bs=4k --size=4m --iodepth=1 --fsync=8 --verify=crc32c --verify_fatal=1 --output="$work/out"
engine --volume=v --rw=randwrite --bs=4k --size=4m --iodepth=16 --fdatasync=32 --end_fsync=1
grep -q 'fsync/fdatasync/sync_file_range' "$work/out"
