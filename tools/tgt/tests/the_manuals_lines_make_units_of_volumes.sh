#!/bin/bash
# The commands of docs/edges/tgt.md, "One working command", as they stand there and in their order; a unit is taken away before the next with its
# number is made.
. "$(dirname "$0")/rig.sh"
sed -n '/^## One working command/,/^## Options/s/^    //p' "$tests/../../../docs/edges/tgt.md" >"$work/lines"
delete=$(grep -- '--op delete' "$work/lines")
serving=$(sed -n 's|^ringway serve --pool /var/lib/ringway \(.*\) &$|\1|p' "$work/lines")
# Its pool is in memory: /var/lib is the machine's.
# shellcheck disable=SC2086
"$RINGWAY" serve --pool mem:256MiB ${serving:?the line that starts the target} >>"$work/ready" 2>>"$work/ringway.log" &
target=$!
wait_until 60 "$RINGWAY" pool show
mkdir -p /run/tgtd
tgtd --foreground >>"$work/tgtd.log" 2>&1 &
daemon=$!
wait_until 30 tgtadm --lld iscsi --mode sys --op show

units=0 there=''
while IFS= read -r line; do
  case $line in
    'ringway serve '*) continue ;;
    *'--mode logicalunit'*)
      [ "$line" != "$delete" ] || continue
      if [ -n "$there" ]; then eval "$delete"; there=''; fi
      : >"$work/tgtd.log"
      units=$((units + 1))
      if eval "$line" 2>>"$work/said"; then
        there=yes
        python3 -c '
import initiator
unit = initiator.Session(1)
unit.write(0, bytes([int("'$units'")]) * 4096)
assert unit.read(0, 8) == bytes([int("'$units'")]) * 4096'
      else
        # On a machine without RDMA there is none to go by; that is said.
        [[ $line == *+rdma* ]]
        grep -i 'openvstorage: .*rdma' "$work/tgtd.log"
      fi ;;
    *) eval "$line" >>"$work/said" 2>&1 || { cat "$work/said" >&2; echo "fails: $line" >&2; exit 1; } ;;
  esac
done <"$work/lines"
[ $units = 5 ]
grep -q 'iqn.2016-01.com.openvstorage:for.all' "$work/said"
grep -q 'VIRTUAL-DISK\|Size:64M\|DIRECT_ACCESS' "$work/said" || { cat "$work/said" >&2; exit 1; }
[ -z "$there" ] || eval "$delete"
stop_tgtd
