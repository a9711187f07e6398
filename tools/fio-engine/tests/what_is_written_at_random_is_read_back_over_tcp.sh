#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:512MiB
ringway volume create v 128MiB >/dev/null
common=(--volume=v --transport=tcp --size=64m --verify=crc32c --verify_fatal=1 --verify_dump=0)
engine "${common[@]}" --rw=randrw --bsrange=4k-64k --bs_unaligned=0 --iodepth=32 --randseed=1
engine "${common[@]}" --rw=randwrite --bs=4k --iodepth=128 --queues=4 --randseed=2
engine "${common[@]}" --rw=randrw --bs=512 --size=1m --iodepth=1 --randseed=3
