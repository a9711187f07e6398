"""An iSCSI initiator for tests: one session, one command at a time, any CDB; its status and sense data as they came.

It has its own code for RFC 7143 on purpose: initiators made for use hide what these tests are about. Nothing here is tgt's or ours.
"""
import socket
import struct

TARGET = "iqn.2016-01.com.openvstorage:for.all"
IMMEDIATE = 8192  # what a target takes in one PDU unless it says more


class Check(Exception):
    """CHECK CONDITION: sense key, additional sense code with its qualifier, INFORMATION or None."""

    def __init__(self, sense):
        self.key, self.asc = sense[2] & 15, sense[12] << 8 | sense[13]
        self.info = int.from_bytes(sense[3:7], "big") if sense[0] & 0x80 else None
        super().__init__(f"sense key {self.key:#x}, {self.asc:#06x}, information {self.info}")


class Session:
    def __init__(self, lun, target=TARGET, timeout=60):
        self.socket = socket.create_connection(("127.0.0.1", 3260), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lun, self.sn, self.status_sn, self.tag = lun, 1, 0, 1
        keys = {"InitiatorName": "iqn.2026-11.io.ringway:test", "TargetName": target, "SessionType": "Normal", "AuthMethod": "None",
                "HeaderDigest": "None", "DataDigest": "None", "ImmediateData": "Yes", "InitialR2T": "Yes"}
        text = b"".join(f"{key}={value}\0".encode() for key, value in keys.items())
        self.send(struct.pack(">BBxxB3s6sHIHxxII16x", 0x43, 0x87, 0, len(text).to_bytes(3, "big"), b"\x80\0\0\0\0\1", 0, 0, 0, 1, 0), text)
        header, _ = self.receive()
        assert header[0] & 0x3F == 0x23 and header[36:38] == b"\0\0", f"login: {header[36:38].hex()}"
        self.status_sn = struct.unpack(">I", header[24:28])[0] + 1
        # A new session is told that the unit was reset, once.
        for _ in range(4):
            try:
                self.command("00" * 6)
                break
            except Check as check:
                assert check.key == 6, check

    def send(self, header, data=b""):
        self.socket.sendall(header + data + bytes(-len(data) % 4))

    def exactly(self, size):
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more, "the target hung up"
            data += more
        return data

    def receive(self):
        header = self.exactly(48)
        size = int.from_bytes(header[5:8], "big")
        return header, self.exactly(size + -size % 4)[:size]

    def command(self, cdb, out=b"", room=0):
        """Runs a command, given in hexadecimal; returns what was read. Raises Check, or the status as an assertion."""
        cdb = bytes.fromhex(cdb).ljust(16, b"\0")
        self.tag += 1
        flags = 0x81 | (0x40 if room else 0) | (0x20 if out else 0)
        lun = struct.pack(">H6x", self.lun)
        first = out[:IMMEDIATE]
        self.send(struct.pack(">BBxxB3s8sIIII16s", 1, flags, 0, len(first).to_bytes(3, "big"), lun, self.tag, len(out) or room, self.sn,
                              self.status_sn, cdb), first)
        self.sn += 1
        data = bytearray()
        while True:
            header, segment = self.receive()
            opcode = header[0] & 0x3F
            if opcode == 0x31:
                self.answer(header, lun, out)
            elif opcode == 0x25:
                data += segment
                if header[1] & 1:
                    return self.ended(header, b"", data)
            elif opcode == 0x21:
                return self.ended(header, segment, data)
            else:
                assert opcode == 0x20, f"an unexpected PDU {opcode:#x}"

    def answer(self, header, lun, out):
        """Sends what the target is ready to transfer."""
        transfer, offset, size = header[20:24], *struct.unpack(">II", header[40:48])
        end, number = offset + size, 0
        while offset < end:
            piece = out[offset:min(offset + IMMEDIATE, end)]
            final = 0x80 if offset + len(piece) == end else 0
            self.send(struct.pack(">BBxxB3s8sI4s4xI4xII4x", 5, final, 0, len(piece).to_bytes(3, "big"), lun, self.tag, transfer,
                                  self.status_sn, number, offset), piece)
            offset, number = offset + len(piece), number + 1

    def ended(self, header, segment, data):
        self.status_sn = struct.unpack(">I", header[24:28])[0] + 1
        status = header[3]
        if status == 2:
            raise Check(segment[2:])
        assert status == 0, f"status {status:#x}"
        assert header[0] & 0x3F == 0x25 or not segment, f"sense data with status GOOD: {segment.hex()}"
        return bytes(data)

    def fails(self, key, asc, *command, **options):
        """A command that has to end with this sense data; returns it."""
        try:
            self.command(*command, **options)
        except Check as check:
            assert (check.key, check.asc) == (key, asc), f"{command[0]}: {check}, wanted {key:#x}, {asc:#06x}"
            return check
        raise AssertionError(f"{command[0]} did not fail")

    def read(self, lba, blocks):
        return self.command(f"88 00 {lba:016x} {blocks:08x} 0000", room=blocks * 512)

    def write(self, lba, data, flags=0):
        self.command(f"8a {flags:02x} {lba:016x} {len(data) // 512:08x} 0000", out=data)


def unmap(*ranges):
    """The data of UNMAP, and its CDB."""
    listed = b"".join(struct.pack(">QI4x", lba, blocks) for lba, blocks in ranges)
    data = struct.pack(">HH4x", len(listed) + 6, len(listed)) + listed
    return f"42 00 00000000 00 {len(data):04x} 00", data
