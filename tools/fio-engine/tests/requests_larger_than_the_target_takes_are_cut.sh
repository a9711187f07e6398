#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:512MiB
ringway volume create v 128MiB >/dev/null
engine --volume=v --rw=write --bs=1m --size=100m --iodepth=8 --verify=crc32c --verify_fatal=1
