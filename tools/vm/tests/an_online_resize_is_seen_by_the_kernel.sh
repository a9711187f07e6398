#!/bin/bash
# limit: 180
# disk: 4 GiB
# kernels: backports
#
# A volume grows while it is mounted. The target tells the kernel by an asynchronous event and nobody rescans; what was there
# stays as it was, and the new space is written and read.
. tests/guest-steps.sh

fresh_target grows 256MiB
attach grows
device_size_is() { [ "$(blockdev --getsize64 "$DEVICE")" = "$1" ]; }
device_size_is $((256 << 20))
mkfs.ext4 -q "$DEVICE"
mkdir -p /tmp/mounted
mount "$DEVICE" /tmp/mounted
cp /usr/bin/bash /tmp/mounted/

step "256 MiB to 512 MiB"
volume_resize grows 512MiB
wait_until 15 "the kernel sees 512 MiB" device_size_is $((512 << 20))
cmp /usr/bin/bash /tmp/mounted/bash
umount /tmp/mounted

step "the new space holds what is written to it"
fio --name=new --filename="$DEVICE" --direct=1 --ioengine=libaio --iodepth=4 --rw=randwrite --bs=16k --offset=496m --size=16m \
  --verify=crc32c --verify_fatal=1 --do_verify=1 --output-format=terse >/tmp/fio.new
mount "$DEVICE" /tmp/mounted
cmp /usr/bin/bash /tmp/mounted/bash
umount /tmp/mounted
volume_shrink_refused grows 128MiB
detach grows
target_stop
