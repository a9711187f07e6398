/*
 * What the parts of the block driver share.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef RINGWAY_QEMU_H
#define RINGWAY_QEMU_H

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "qapi/error.h"
#include "qemu/option.h"
#if __has_include("qobject/qdict.h")
#include "qobject/qdict.h"
#else
#include "qapi/qmp/qdict.h"
#endif
#include <openvstorage/volumedriver.h>

/* The port that clients of Open vStorage dial. */
#define RINGWAY_PORT 21321
/* Seconds that a snapshot may take to be synced. */
#define RINGWAY_SNAPSHOT_TIMEOUT 120
/* A snapshot's name with its end. */
#define RINGWAY_SNAPSHOT_NAME_SIZE 128

/* Which volume, and how it is reached: out of a filename or of options, checked. */
typedef struct Settings {
    char *transport;   /* shm, tcp or rdma */
    char *host;        /* NULL with shm; may be a list with commas */
    int port;
    char *volume;
    int64_t snapshot_timeout;   /* seconds */
    bool enable_ha;
} Settings;

/* GLib's looks into a table of GLib's, and the driver refers to no data but its own. */
static inline bool is_digit(char is)
{
    return is >= '0' && is <= '9';
}

/* options.c */
void ringway_parse_filename(const char *filename, QDict *options, Error **errp);
bool ringway_settings(const char *driver, QDict *options, Settings *settings, Error **errp);
void ringway_free_settings(Settings *settings);
void ringway_filename(const char *driver, const Settings *settings, char *filename, size_t size);

/* library.c: libovsvolumedriver.so.1, loaded when the first volume is opened and not before, since whatever else this process starts has
 * the driver loaded as well. */
#define RINGWAY_LIBRARY(X) \
    X(ovs_ctx_attr_new) X(ovs_ctx_attr_destroy) X(ovs_ctx_attr_set_transport) X(ovs_ctx_attr_set_network_qdepth) \
    X(ovs_ctx_attr_enable_ha) X(ovs_ctx_new) X(ovs_ctx_init) X(ovs_ctx_destroy) X(ovs_create_volume) X(ovs_remove_volume) \
    X(ovs_truncate) X(ovs_stat) X(ovs_block_bytes) X(ovs_block_status) X(ovs_snapshot_create) X(ovs_snapshot_rollback) \
    X(ovs_snapshot_list) X(ovs_snapshot_list_free) X(ovs_snapshot_remove) X(ovs_snapshot_time) X(ovs_aio_create_completion) \
    X(ovs_aio_return_completion) X(ovs_aio_release_completion) X(ovs_aio_readvcb) X(ovs_aio_writevcb) X(ovs_aio_flushcb) \
    X(ovs_aio_discardcb) X(ovs_aio_write_zeroescb) X(ovs_flush) X(ovs_last_error)

typedef struct Library {
#define RINGWAY_MEMBER(name) __typeof__(name) *name;
    RINGWAY_LIBRARY(RINGWAY_MEMBER)
#undef RINGWAY_MEMBER
} Library;

extern Library ovs;
bool ringway_load_library(Error **errp);

/* driver.c */
void ringway_register(void);

#endif
