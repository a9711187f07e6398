#!/usr/bin/env python3
"""pick-modules.py SOURCE TARGET NAME...: copy kernel modules, and the modules they depend on, unpacked.

SOURCE and TARGET are .../lib/modules/VERSION. Modules are unpacked here because xz is slow inside the guest.
"""
import lzma
import os
import shutil
import sys

source, target, *names = sys.argv[1:]


def plain(path):
    return os.path.basename(path).split(".ko")[0].replace("-", "_")


needs, path_of = {}, {}
for line in open(f"{source}/modules.dep"):
    path, needed = line.strip().split(":")
    needs[path] = needed.split()
    path_of[plain(path)] = path
builtin = {plain(line.strip()) for line in open(f"{source}/modules.builtin")}

wanted, absent = set(), []
for name in names:
    key = name.replace("-", "_")
    if key in path_of:
        wanted |= {path_of[key], *needs[path_of[key]]}
    elif key not in builtin:
        absent.append(name)

for path in wanted:
    out = os.path.join(target, path[: path.index(".ko") + 3])
    os.makedirs(os.path.dirname(out), exist_ok=True)
    if path.endswith(".xz"):
        open(out, "wb").write(lzma.open(f"{source}/{path}").read())
    else:
        shutil.copy(f"{source}/{path}", out)
for listing in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
    shutil.copy(f"{source}/{listing}", target)
print(f"{len(wanted)} modules; this kernel has no {' '.join(absent) or 'gaps'}")
