#!/bin/bash
# Two units, one by shared memory and one by TCP; what was acknowledged before the target was killed is there after it, and what was in flight ends well.
. "$(dirname "$0")/rig.sh"
ringway pool format "$work/pool" --size 512MiB >/dev/null
serve --pool "$work/pool"
ringway volume create vm1 64MiB >/dev/null
ringway volume create vm2 64MiB >/dev/null
start_tgtd
unit_new 1 openvstorage vm1
unit_new 2 openvstorage+tcp localhost:12345/vm2
cat >"$work/load.py" <<'P'
import sys, time
from initiator import Session, unmap

unit, until = Session(int(sys.argv[1])), time.time() + 5
written = {}
turn = 0
while time.time() < until:
    turn += 1
    lba = turn * 7919 % 1000 * 16
    data = turn.to_bytes(8, "big") * 1024
    unit.write(lba, data)
    written[lba] = data
    if turn % 16 == 0:
        unit.command("35 00 00000000 00 0000 00")
    if turn % 64 == 0:
        cdb, ranges = unmap((lba, 16))
        unit.command(cdb, out=ranges)
        written[lba] = bytes(8192)
        unit.command(f"89 00 {lba:016x} 000000 01 0000", out=bytes(512) + b"c" * 512)
        written[lba] = b"c" * 512 + bytes(8192 - 512)
    back = unit.read(lba, 16)
    assert back == written[lba], f"block {lba}, turn {turn}"
for lba, data in written.items():
    assert unit.read(lba, 16) == data, f"block {lba} at the end"
assert turn > 20, turn
P
python3 "$work/load.py" 1 & first=$!
python3 "$work/load.py" 2 & second=$!
# Hundredths of a second of CPU.
used() { awk '{ print $14 + $15 }' "/proc/$daemon/stat"; }
for _ in 1 2; do
  sleep 1
  kill_target
  # Who waits for a target does not do so by asking all the time.
  before=$(used)
  sleep 1
  [ $(($(used) - before)) -lt 40 ] || { echo "tgtd used $(($(used) - before)) of 100 while it waited" >&2; exit 1; }
  serve --pool "$work/pool"
done
wait $first
wait $second
stop_tgtd
