#!/bin/bash
# limit: 240
# disk: 4 GiB
# kernels: backports bookworm
#
# The first thing anybody does: discover, connect, make a file system, copy files, unmount, disconnect; then the target
# is stopped and started, and what comes back over a new connection is what went in.
. tests/guest-steps.sh

fresh_target files 1GiB

step "discovery lists the volume"
nvme discover --transport tcp --traddr $ADDRESS --trsvcid $PORT | tee /tmp/discovered
grep -q "subnqn: *$(nqn_of files)$" /tmp/discovered

attach files
[ "$(blockdev --getsize64 "$DEVICE")" = $((1 << 30)) ]
nvme id-ctrl "$DEVICE" | sed -n '1,6p'
nvme id-ns "$DEVICE" | sed -n '1,4p'

step "a file system and files"
mkfs.ext4 -q "$DEVICE"
mkdir -p /tmp/mounted
mount "$DEVICE" /tmp/mounted
cp -r /usr/bin /tmp/mounted/programs
cp /mnt/host/tests/*.sh /tmp/mounted/
(cd /tmp/mounted && find . -type f -print0 | sort -z | xargs -0 sha256sum) >/tmp/sums
step "$(wc -l </tmp/sums) files, $(du -sm /tmp/mounted | cut -f1) MiB"
umount /tmp/mounted
detach files

step "the target stops and starts"
target_stop
target_start

attach files
fsck.ext4 -fn "$DEVICE" >/tmp/fsck || { cat /tmp/fsck; fail "the file system is damaged"; }
mount -o ro "$DEVICE" /tmp/mounted
(cd /tmp/mounted && sha256sum --quiet --check /tmp/sums)
step "every file is as it was"
umount /tmp/mounted
detach files
target_stop
