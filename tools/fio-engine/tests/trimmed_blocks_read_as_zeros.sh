#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:512MiB
ringway volume create v 64MiB >/dev/null
engine --volume=v --rw=write --bs=64k --size=32m --iodepth=8
# More than one command can say: 64 MiB at once over blocks of 512.
engine --volume=v --rw=trim --bs=32m --size=32m --iodepth=2
engine --volume=v --rw=read --bs=64k --size=32m --iodepth=8 --verify=pattern --verify_pattern=0x00 --verify_fatal=1
engine --volume=v --rw=randtrim --bs=4k --size=32m --iodepth=16 --io_size=8m
