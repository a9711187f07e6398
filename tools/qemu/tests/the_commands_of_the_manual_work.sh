#!/bin/bash
manual=$(realpath "$(dirname "$0")/../../../docs/edges/qemu.md")
. "$(dirname "$0")/rig.sh"
# Its commands, in their order. What stands there as "..." is filled in.
serve --pool mem:512MiB
head -c 64M /dev/urandom >disk.img
count=0
while read -r line; do
  line=${line//127.0.0.1:21321/127.0.0.1:$port}
  case $line in
    *qemu-system-x86_64*)
      line=${line/qemu-system-x86_64 .../qemu-system-x86_64 -machine pc -nodefaults -display none -S -qmp stdio}
      bash -euc "printf '%s\n' '{\"execute\": \"qmp_capabilities\"}' '{\"execute\": \"quit\"}' | timeout 60 $line" >said 2>&1 || { cat said >&2; exit 1; }
      grep -q SHUTDOWN said
      ;;
    *qemu-storage-daemon*)
      bash -euc "exec ${line/--export .../--nbd-server addr.type=unix,addr.path=$run/n.sock --export type=nbd,id=vm1,node-name=vm1,writable=on}" >>log 2>&1 &
      started+=($!)
      wait_for "the storage daemon listens" test -S "$run/n.sock"
      qemu-io -f raw -c 'write -P 5 0 1M' -c 'read -P 5 0 1M' "nbd+unix:///vm1?socket=$run/n.sock" >said
      ! grep -iE 'fail|error' said
      kill -TERM "${started[-1]}"
      wait "${started[-1]}"
      ;;
    *qemu-nbd*)
      bash -euc "exec $line" >>log 2>&1 &
      started+=($!)
      wait_for "qemu-nbd listens" test -S vm1.sock
      qemu-io -f raw -c 'read -P 5 0 1M' "nbd+unix:///?socket=$work/vm1.sock" >said
      ! grep -iE 'fail|error' said
      wait "${started[-1]}"
      ;;
    *) timeout 60 bash -euc "$line" >said 2>&1 || { printf '%s\n' "$line" >&2; cat said >&2; exit 1; } ;;
  esac
  case $line in *'snapshot --image-opts -l'*) grep -q monday said ;; *info*) grep -q '64 MiB' said ;; esac
  count=$((count + 1))
done < <(sed -n 's/^    \(ringway-qemu qemu-.*\)/\1/p' "$manual")
[ "$count" -ge 12 ] || { echo "the manual has $count commands" >&2; exit 1; }
io openvstorage:vm1 'read -P 5 0 1M'
