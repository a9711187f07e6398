#!/usr/bin/env python3
"""pick-binaries.py TREE ROOT NAME...: copy programs, and the libraries they are linked with, from unpacked packages.

Leaves out everything else of the packages: the root image stays small enough to build in seconds and to sit in the page
cache. A program or a library that no package has is an error, since a test would only find out much later.
"""
import glob
import os
import re
import shutil
import subprocess
import sys

tree, root, *names = sys.argv[1:]
LIB = "usr/lib/x86_64-linux-gnu"
BIN_DIRS = ["usr/bin", "bin", "usr/sbin", "sbin"]
LIB_DIRS = ["lib/x86_64-linux-gnu", LIB, "lib64", "usr/lib", "lib"]
LIB_DIRS += [os.path.relpath(d, tree) for d in glob.glob(f"{tree}/{LIB}/*/")]
# Loaded by name at run time, or wanted by a binary of ours that is built on the host.
ALSO = ["libuuid.so.1", "liburing.so.2", "libgcc_s.so.1", "libstdc++.so.6", "libnss_files.so.2", "libpthread.so.0",
        "libdl.so.2", "librt.so.1", "libm.so.6"]

to_scan, missing = [], []


def find(name, dirs):
    return next((p for d in dirs if os.path.lexists(p := f"{tree}/{d}/{name}")), None)


def resolve(path):
    """Follow symbolic links inside the tree, absolute ones included."""
    for _ in range(9):
        if not os.path.islink(path):
            return path
        link = os.readlink(path)
        path = tree + link if link.startswith("/") else os.path.normpath(f"{os.path.dirname(path)}/{link}")
    sys.exit(f"pick-binaries.py: {path}: too many levels of links")


def put(name, dirs, target, wanted_by):
    found = find(name, dirs)
    if not found:
        missing.append(f"{name} (wanted by {wanted_by})")
    elif not os.path.lexists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy2(resolve(found), target)
        to_scan.append(target)


def lay_out():
    for d in f"dev proc sys tmp run mnt/host root etc var/lib var/run usr/bin {LIB} usr/lib64 usr/lib/modules".split():
        os.makedirs(f"{root}/{d}", exist_ok=True)
    for link, to in (("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib64", "usr/lib64"), ("lib", "usr/lib"), ("usr/sbin", "bin")):
        os.symlink(to, f"{root}/{link}")


lay_out()
for name in names:
    put(name, BIN_DIRS, f"{root}/usr/bin/{name}", "binaries.txt")
for name in ("modprobe", "lsmod", "insmod", "rmmod", "modinfo", "depmod"):
    os.symlink("kmod", f"{root}/usr/bin/{name}")
for name in ALSO:
    put(name, LIB_DIRS, f"{root}/{LIB}/{name}", "pick-binaries.py")
# providers of verbs: libibverbs opens what its .driver files name
os.makedirs(f"{root}/etc/libibverbs.d")
for provider in ("rxe", "siw"):
    for path in glob.glob(f"{tree}/{LIB}/libibverbs/lib{provider}*.so"):
        put(os.path.basename(path), [f"{LIB}/libibverbs"], root + path[len(tree):], "libibverbs")
    driver = f"{tree}/etc/libibverbs.d/{provider}.driver"
    if os.path.exists(driver):
        shutil.copy(driver, f"{root}/etc/libibverbs.d/")

while to_scan:
    path = to_scan.pop()
    headers = subprocess.run(["readelf", "-ld", path], capture_output=True, text=True).stdout
    for name in re.findall(r"NEEDED.*\[(.*)\]", headers):
        # the loader is found by the name in the ELF header, below
        if not name.startswith("ld-linux"):
            put(name, LIB_DIRS, f"{root}/{LIB}/{name}", os.path.basename(path))
    if "interpreter: " in headers:
        put("ld-linux-x86-64.so.2", LIB_DIRS, f"{root}/usr/lib64/ld-linux-x86-64.so.2", os.path.basename(path))
if missing:
    sys.exit("pick-binaries.py: no package has: " + ", ".join(sorted(set(missing))))
