#!/bin/bash
. "$(dirname "$0")/rig.sh"
over=shm
serve --pool mem:512MiB
ringway volume create v 128MiB >/dev/null
common=(--volume=v --size=64m --verify=crc32c --verify_fatal=1 --verify_dump=0)
engine "${common[@]}" --rw=randrw --bsrange=4k-64k --bs_unaligned=0 --iodepth=32 --randseed=1
engine "${common[@]}" --rw=randwrite --bs=4k --iodepth=128 --randseed=2
engine "${common[@]}" --rw=randrw --bs=512 --size=1m --iodepth=1 --randseed=3
engine "${common[@]}" --rw=write --bs=1m --iodepth=8 --fsync=4
engine --volume=v --rw=trim --bs=4m --size=32m --iodepth=2
engine --volume=v --rw=read --bs=64k --size=32m --iodepth=8 --verify=pattern --verify_pattern=0x00 --verify_fatal=1
engine "${common[@]}" --numjobs=4 --size=16m --offset_increment=16m --rw=randrw --bs=4k --iodepth=8
engine "${common[@]}" --numjobs=4 --size=16m --offset_increment=16m --rw=randrw --bs=4k --iodepth=8 --thread=0
