#!/usr/bin/env python3
"""unpack-kernel.py BZIMAGE VMLINUX: take the ELF image out of a compressed kernel.

QEMU boots an ELF kernel through its PVH entry, so that nothing is decompressed inside the slow guest. Debian's 6.12 is
packed with zstd, its 6.1 with xz.
"""
import lzma
import subprocess
import sys

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
XZ_MAGIC = b"\xfd7zXZ\x00"


def unzstd(data):
    # zstd complains about what follows the frame and writes the frame all the same
    return subprocess.run(["zstd", "-dc"], input=data, capture_output=True).stdout


def unxz(data):
    try:
        return lzma.LZMADecompressor().decompress(data)
    except lzma.LZMAError:
        return b""


def main(bzimage, vmlinux):
    data = open(bzimage, "rb").read()
    for magic, unpack in ((ZSTD_MAGIC, unzstd), (XZ_MAGIC, unxz)):
        at = data.find(magic)
        while at >= 0:
            image = unpack(data[at:])
            if image[:4] == b"\x7fELF":
                open(vmlinux, "wb").write(image)
                return
            at = data.find(magic, at + 1)
    sys.exit(f"unpack-kernel.py: {bzimage} holds no ELF image packed with zstd or xz")


main(*sys.argv[1:])
