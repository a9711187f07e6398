/*
 * libovsvolumedriver.so.1, which is looked for beside the driver, then where the loader looks.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "ringway.h"

#include <dlfcn.h>

Library ovs;

bool ringway_load_library(Error **errp)
{
    static const char name[] = "libovsvolumedriver.so.1";
    static bool loaded;
    void *library;

    if (loaded) {
        return true;
    }
    library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        error_setg(errp, "%s: install it beside this driver by tools/qemu/build, or set LD_LIBRARY_PATH", dlerror());
        return false;
    }
#define RINGWAY_FIND(function) \
    ovs.function = (__typeof__(function) *)dlsym(library, #function); \
    if (!ovs.function) { \
        error_setg(errp, "%s is not Ringway's, or is older than this driver: it has no %s", name, #function); \
        return false; \
    }
    RINGWAY_LIBRARY(RINGWAY_FIND)
#undef RINGWAY_FIND
    loaded = true;
    return true;
}
