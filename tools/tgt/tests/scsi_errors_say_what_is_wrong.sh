#!/bin/bash
. "$(dirname "$0")/rig.sh"
serve --pool mem:64MiB
ringway volume create vm1 1GiB >/dev/null
ringway volume create vm2 64MiB >/dev/null
start_tgtd
unit_new 1 openvstorage vm1
unit_new 2 openvstorage+tcp localhost/vm2 --bsopts=enable-ha=off
python3 - <<'P'
from initiator import Session, unmap

unit = Session(1)
LAST = (1 << 30) // 512
INVALID_CDB, INVALID_LIST, LIST_LENGTH, OUT_OF_RANGE = 0x2400, 0x2600, 0x1A00, 0x2100

# Beyond the end.
unit.fails(5, OUT_OF_RANGE, f"88 00 {LAST:016x} 00000001 0000", room=512)
unit.fails(5, OUT_OF_RANGE, *unmap((LAST, 1))[:1], out=unmap((LAST, 1))[1])

# UNMAP: one range that is wrong spares the others; too many; a list that is too short; ranges that its head does not have.
unit.write(0, b"a" * 8192)
cdb, data = unmap((0, 8), (LAST - 1, 2))
unit.fails(5, OUT_OF_RANGE, cdb, out=data)
assert unit.read(0, 16) == b"a" * 8192
cdb, data = unmap(*[(0, 0)] * 257)
unit.fails(5, INVALID_LIST, cdb, out=data)
unit.fails(5, LIST_LENGTH, "42 00 00000000 00 0004 00", out=bytes(4))
cdb, data = unmap((0, 8))
unit.command(cdb, out=data[:2] + b"\0\0" + data[4:])
assert unit.read(0, 16) == b"a" * 8192
# What is unmapped reads as zeros, also parts of the volume's blocks.
cdb, data = unmap((1, 3), (8, 8))
unit.command(cdb, out=data)
assert unit.read(0, 16) == b"a" * 512 + bytes(1536) + b"a" * 2048 + bytes(4096)

# COMPARE AND WRITE: a difference is told with its place, and nothing is written; the data has to be two times the blocks.
caw = "89 00 0000000000000000 000000 01 0000"
check = unit.fails(14, 0x1D00, caw, out=b"a" * 99 + b"b" * 413 + b"c" * 512)
assert check.info == 99, check
assert unit.read(0, 1) == b"a" * 512
unit.fails(5, INVALID_CDB, caw, out=b"a" * 512)
unit.fails(5, INVALID_CDB, "89 00 0000000000000000 000000 81 0000", out=bytes(129 * 1024))
unit.command(caw, out=b"a" * 512 + b"c" * 512)
assert unit.read(0, 1) == b"c" * 512

# ORWRITE, WRITE AND VERIFY, VERIFY with data and with one block for all.
unit.command("8b 00 0000000000000000 00000001 0000", out=b"\x0f" * 512)
assert unit.read(0, 1) == b"o" * 512
unit.command("8e 02 0000000000000064 00000600 0000", out=b"w" * 1536 * 512)
assert unit.read(100, 1536) == b"w" * 1536 * 512
unit.command("8f 06 0000000000000064 00000600 0000", out=b"w" * 512)
check = unit.fails(14, 0x1D00, "8f 06 0000000000000064 00000601 0000", out=b"w" * 512)
assert check.info == 1536 * 512, check
unit.fails(14, 0x1D00, "8f 02 0000000000000064 00000001 0000", out=b"v" * 512)

# WRITE SAME: a pattern over more than one piece; zeros to the end of a volume that 32 bits of bytes cannot count; what it takes not.
unit.command("93 00 0000000000000000 00000600 0000", out=bytes(range(256)) * 2)
assert unit.read(0, 1536) == bytes(range(256)) * 2 * 1536
unit.command("93 08 0000000000000400 00000000 0000", out=bytes(512))
assert unit.read(0x3FF, 2) == bytes(range(256)) * 2 + bytes(512)
unit.fails(5, INVALID_CDB, "93 02 0000000000000000 00000001 0000", out=bytes(512))
unit.fails(5, LIST_LENGTH, "93 00 0000000000000000 00000001 0000")
unit.command("93 09 0000000000000000 00000400 0000")
assert unit.read(0, 1024) == bytes(1024 * 512)

# Written through, and flushed.
unit.write(0, b"f" * 512, flags=8)
unit.command("35 00 00000000 00 0000 00")
unit.command("35 02 00000000 00 0000 00")

# GET LBA STATUS tells what is there as data, and from the block on that was asked for; a short room has no descriptor.
def status(unit, lba, room=8 + 64 * 16):
    answer = unit.command(f"9e 12 {lba:016x} {room:08x} 0000", room=room)
    length = int.from_bytes(answer[:4], "big") + 4
    assert len(answer) <= room and length >= 24, (room, length, len(answer))
    parts = [answer[at:at + 16] for at in range(8, min(len(answer), length) - 15, 16)]
    return [(int.from_bytes(p[:8], "big"), int.from_bytes(p[8:12], "big"), p[12]) for p in parts]
for session in unit, Session(2):
    session.write(0, b"d" * 65536)
    cdb, data = unmap((16, 16))
    session.command(cdb, out=data)
    found = status(session, 4)
    assert found[:2] == [(4, 12, 0), (16, 16, 1)] and found[2][0] == 32 and found[2][2] == 0, found
    assert all(one[0] + one[1] == other[0] for one, other in zip(found, found[1:])), found
    assert status(session, 0, 8) == [] and status(session, 0, 24) == [(0, 16, 0)]
    session.fails(5, INVALID_CDB, "9e 12 0000000000000000 00000003 0000", room=3)
    session.fails(5, OUT_OF_RANGE, f"9e 12 {LAST:016x} 00000018 0000", room=24)

# The pool is full: SPACE ALLOCATION FAILED WRITE PROTECT. Space comes back by UNMAP.
lba = 2048
try:
    while lba < LAST:
        unit.write(lba, b"x" * 65536)
        lba += 128
    raise AssertionError("64 MiB hold 1 GiB")
except Exception as full:
    assert getattr(full, "key", None) == 7 and full.asc == 0x2707, full
cdb, data = unmap((2048, lba - 2048))
unit.command(cdb, out=data)
unit.write(2048, b"y" * 65536)
P
# A target that is gone and not waited for: NOT READY.
kill_target
python3 - <<'P'
from initiator import Session

unit = Session(2)
unit.fails(2, 0x0400, "88 00 0000000000000000 00000001 0000", room=512)
unit.fails(2, 0x0400, "8a 00 0000000000000000 00000001 0000", out=bytes(512))
unit.fails(2, 0x0400, "35 00 00000000 00 0000 00")
unit.fails(2, 0x0400, "93 00 0000000000000000 00000001 0000", out=bytes(512))
P
unit_delete 2
