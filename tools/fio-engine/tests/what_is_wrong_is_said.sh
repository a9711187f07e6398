#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:256MiB
ringway volume create v 64MiB --lba 4096 >/dev/null
ringway volume create closed 64MiB --host nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555 >/dev/null
read=(--rw=read --bs=4k --size=1m)
fails 'volume=NAME' "${read[@]}"
fails 'A-Z a-z 0-9' --volume=a:b "${read[@]}"
fails 'ringway volume list' --volume=nope "${read[@]}"
fails 'ringway volume hosts' --volume=closed "${read[@]}"
fails 'transport=pigeon' --volume=v --transport=pigeon "${read[@]}"
fails '1 to 128' --volume=v --queues=0 "${read[@]}"
fails 'logical block' --volume=v --rw=read --bs=512 --size=1m
fails 'host=no-such-host.invalid' --volume=v --host=no-such-host.invalid "${read[@]}"
fails 'is `ringway serve` running there?' --volume=v --port=1 "${read[@]}"
engine --volume=closed --hostnqn=nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555 "${read[@]}"
