#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:256MiB
ringway volume create vm1 64MiB >/dev/null
ringway volume create dir/vm2 64MiB >/dev/null
start_tgtd
refused 'names no volume' 1 openvstorage+tcp localhost/
refused 'HOST[:PORT]/VOLUME' 1 openvstorage+tcp vm1
refused 'a host is wanted' 1 openvstorage+tcp /vm1
refused 'port "99999"' 1 openvstorage+tcp localhost:99999/vm1
refused 'port "0"' 1 openvstorage+tcp localhost:0/vm1
refused 'port "12x"' 1 openvstorage+tcp localhost:12x/vm1
refused 'ends in ] or ]:PORT' 1 openvstorage+tcp '[::1/vm1'
refused 'is `ringway serve` running there?' 1 openvstorage+tcp localhost:1/vm1
refused 'cannot be resolved' 1 openvstorage+tcp no-such-host.invalid/vm1
refused 'there is no volume nosuch' 1 openvstorage nosuch
refused 'the target has no subsystem nqn.2026-11.io.ringway:nosuch' 1 openvstorage+tcp localhost/nosuch
refused "$(printf 'v%.0s' $(seq 100))" 1 openvstorage "$(printf 'v%.0s' $(seq 300))"
refused 'enable-ha=on and enable-ha=off' 1 openvstorage vm1:enable-ha=maybe
refused 'enable-ha=on and enable-ha=off' 1 openvstorage vm1:snapshot-timeout=1
refused 'enable-ha=on and enable-ha=off' 1 openvstorage vm1 --bsopts=enable-ha
# A host with the type that has none is a volume with an option that is none.
refused 'enable-ha=on and enable-ha=off' 1 openvstorage localhost:12345/vm1
refused 'no device of type 17' 1 openvstorage vm1 --device-type osd
unit_new 1 openvstorage vm1
refused 'has another writer' 2 openvstorage vm1
refused 'has another writer' 2 openvstorage+tcp localhost/vm1
unit_delete 1
# What was refused has left nothing behind: each way of writing it works.
for path in localhost/vm1 127.0.0.1:12345/vm1 localhost:/vm1 localhost/dir/vm2 localhost/vm1:enable-ha=off; do
  unit_new 1 openvstorage+tcp $path
  unit_delete 1
done
for path in vm1 dir/vm2 vm1:enable-ha=on; do
  unit_new 1 openvstorage+shm $path
  unit_delete 1
done
unit_new 1 openvstorage vm1 --bsopts=enable-ha=off
# A snapshot is there to be read, beside its volume.
ringway snapshot create vm1 before >/dev/null
unit_new 2 openvstorage vm1@before
tgtadm --lld iscsi --mode target --op show | grep -A12 'LUN: 2' | grep -q 'Readonly: Yes'
python3 - <<'P'
import initiator
snapshot = initiator.Session(2)
assert snapshot.read(0, 8) == bytes(4096)
snapshot.fails(7, 0x2700, "8a 00 0000000000000000 00000001 0000", out=bytes(512))
snapshot.command("35 00 00000000 00 0000 00")
P
stop_tgtd
