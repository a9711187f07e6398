#!/bin/bash
. "$(dirname "$0")/rig.sh"
over=shm
read=(--rw=read --bs=4k --size=1m)
fails 'is one running with this runtime folder' --volume=v --reconnect=0 "${read[@]}"
serve --pool mem:256MiB
ringway volume create v 64MiB --lba 4096 >/dev/null
fails 'ringway volume list' --volume=nope "${read[@]}"
fails 'a job has one ring' --volume=v --queues=2 "${read[@]}"
fails 'logical block' --volume=v --rw=read --bs=512 --size=1m
engine --volume=v "${read[@]}"
# who does not wait for a lost target is let in all the same
engine --volume=v --reconnect=0 "${read[@]}"
