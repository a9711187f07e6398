#!/bin/bash
vmrun=$(realpath "$(dirname "$0")/../../vm/vmrun")
. "$(dirname "$0")/rig.sh"
# The guest of the test VM, whose QEMU is the installed one: with the programs of the other version there is nothing else to see.
version() { "$1" --version | sed -n '1s/^[^(]* \([0-9]*\.[0-9]*\)\..*/\1/p'; }
[ "$(version qemu-img)" = "$(version qemu-system-x86_64)" ] || exit 0
serve --pool "$work/pool" --pool-size 512MiB
ringway volume create v 256MiB >/dev/null
patience=180
mkdir share
cat >share/guest <<'GUEST'
set -euo pipefail
for disk in /dev/vd?; do [ "$(blockdev --getsize64 "$disk")" != $((256 << 20)) ] || break; done
mkfs.ext4 -q "$disk"
mkdir -p /tmp/mounted
mount -o discard "$disk" /tmp/mounted
touch /mnt/host/mounted
for n in 1 2 3 4 5 6 7 8 9 10; do cp /usr/bin/bash "/tmp/mounted/copy$n"; sync; done
until [ -e /mnt/host/back ]; do sleep 0.2; done
for n in 1 2 3 4 5 6 7 8 9 10; do cmp /usr/bin/bash "/tmp/mounted/copy$n"; done
rm /tmp/mounted/copy[1-5]
cp /usr/bin/bash /tmp/mounted/last
umount /tmp/mounted
fsck.ext4 -fn "$disk" >/dev/null 2>&1
! dmesg | grep -iE "I/O error|blk_update_request|Buffer I/O"
echo "the guest is content"
GUEST
disk="-drive file=$tcp/v:snapshot-timeout=120,if=none,id=ringway,format=raw,discard=unmap -device virtio-blk-pci,drive=ringway"
LD_PRELOAD=$DRIVER/lib/ringway/qemu-$(version qemu-system-x86_64).so \
  "$vmrun" -x "$disk" -d share -t 200 bash guest >guest.out 2>&1 &
started+=($!)
wait_for "the guest has a file system" test -e share/mounted
for _ in 1 2; do
  stop
  sleep 1
  serve --pool "$work/pool"
  sleep 1
done
touch share/back
wait "${started[0]}" || { cat guest.out >&2; exit 1; }
has "$(cat guest.out)" 'the guest is content'
