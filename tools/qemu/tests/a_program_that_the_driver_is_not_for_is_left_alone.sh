#!/bin/bash
. "$(dirname "$0")/rig.sh"
# Not a program of QEMU's: nothing is said, and nothing of QEMU's is missed, even if all is bound at once.
for object in "$DRIVER"/lib/ringway/qemu-*.so; do
  [ -z "$(LD_BIND_NOW=1 LD_PRELOAD=$object sh -c 'ls / | wc -l >/dev/null' 2>&1)" ]
done
# A QEMU of another version than the object's.
mine=$(qemu-img --version | sed -n '1s/.* \([0-9]*\.[0-9]*\)\..*/\1/p')
other=
for object in "$DRIVER"/lib/ringway/qemu-*.so; do
  case $object in */qemu-$mine.so) ;; *) other=$object ;; esac
done
said=$(LD_PRELOAD=$other qemu-img info openvstorage:v 2>&1) && exit 1
has "$said" "this is QEMU $mine"
has "$said" "Unknown protocol 'openvstorage'"
mkdir -p none only
fails 'for which there is no driver' env RINGWAY_QEMU_LIB="$work/none" ringway-qemu qemu-img info openvstorage:v
cp "$other" only/
fails 'built for: ' env RINGWAY_QEMU_LIB="$work/only" ringway-qemu qemu-img info openvstorage:v
fails 'is it a program of QEMU' ringway-qemu true
fails 'there is no no-such-program' ringway-qemu no-such-program
cp "$DRIVER/lib/ringway/qemu-$mine.so" only/
fails 'libovsvolumedriver.so.1' env RINGWAY_QEMU_LIB="$work/only" ringway-qemu qemu-img info openvstorage:v
has "$(ringway-qemu --help)" 'usage: ringway-qemu PROGRAM'
ln -s "$DRIVER/bin/ringway-qemu" ringway-qemu-img
has "$("$work/ringway-qemu-img" --version)" "qemu-img version $mine"
