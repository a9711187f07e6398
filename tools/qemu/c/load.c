/*
 * How the driver gets into a QEMU that knows nothing of it: the object is named in LD_PRELOAD, and its constructor registers the driver
 * as QEMU's own constructors do theirs. It is loaded into whatever else inherits LD_PRELOAD too, so everything of QEMU is referred to weakly
 * and by calls alone, and nothing happens where there is no register_module_init.
 *
 * Structures of the block layer change from one minor version to the next, so the object is for one of them. The version that runs is read
 * out of the program, which has it as the creator it writes into VHDX images.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "ringway.h"
#include "qemu/module.h"

#include <dlfcn.h>
#include <link.h>

#if !defined(RINGWAY_QEMU)
#error "RINGWAY_QEMU is the version, \"10.0\", of the headers"
#endif

#define CREATOR "QEMU v"
/* Digits and points of a version. */
#define VERSION_SIZE 32

static bool find_version(const char *from, size_t size, char *version)
{
    const char *end = from + size;
    const char *at;

    while ((at = memmem(from, end - from, CREATOR, strlen(CREATOR)))) {
        int length = 0;

        from = at + strlen(CREATOR);
        while (length < VERSION_SIZE - 1 && from + length < end && (is_digit(from[length]) || from[length] == '.')) {
            length++;
        }
        if (length > 2) {
            memcpy(version, from, length);
            version[length] = 0;
            return true;
        }
    }
    return false;
}

/* The first object is the program itself. */
static int look_into_program(struct dl_phdr_info *info, size_t size, void *version)
{
    for (int at = 0; at < info->dlpi_phnum; at++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[at];

        if (part->p_type == PT_LOAD && (part->p_flags & PF_R) && !(part->p_flags & PF_W)
            && find_version((const char *)info->dlpi_addr + part->p_vaddr, part->p_memsz, version)) {
            return 1;
        }
    }
    return -1;
}

static bool is_of_version(const char *version)
{
    size_t length = strlen(RINGWAY_QEMU);

    return !strncmp(version, RINGWAY_QEMU, length) && (version[length] == '.' || !version[length]);
}

static void __attribute__((constructor)) load(void)
{
    char version[VERSION_SIZE] = "of an unknown version";
    void (*add)(void (*)(void), module_init_type) = (__typeof__(add))dlsym(RTLD_DEFAULT, "register_module_init");

    if (!add || !dlsym(RTLD_DEFAULT, "bdrv_register")) {
        return;
    }
    dl_iterate_phdr(look_into_program, version);
    if (!is_of_version(version)) {
        dprintf(STDERR_FILENO, "ringway: this is QEMU %s, and the driver in LD_PRELOAD was built for %s: no openvstorage volumes here; "
                "build it for this one by tools/qemu/build, and start programs by ringway-qemu\n", version, RINGWAY_QEMU);
        return;
    }
    add(ringway_register, MODULE_INIT_BLOCK);
}
