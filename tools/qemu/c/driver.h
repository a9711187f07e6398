/*
 * A volume that QEMU has open, and what is done to it as a whole.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef RINGWAY_QEMU_DRIVER_H
#define RINGWAY_QEMU_DRIVER_H

#include "ringway.h"

typedef struct RingwayState {
    Settings settings;
    ovs_ctx_t *ctx;   /* NULL after the volume could not be opened again */
    int oflag;        /* O_RDONLY or O_RDWR: the latter has the writer's lease */
} RingwayState;

/* driver.c */
int ringway_connect(const Settings *settings, const char *volume, int oflag, ovs_ctx_t **made, Error **errp);
int ringway_replace(RingwayState *s, const char *volume, int oflag, Error **errp);
void ringway_note_length(BlockDriverState *bs);

/* roles.c: who reads and who writes */
int ringway_reopen_prepare(BDRVReopenState *state, BlockReopenQueue *queue, Error **errp);
void ringway_reopen_commit(BDRVReopenState *state);
void ringway_reopen_abort(BDRVReopenState *state);
int ringway_inactivate(BlockDriverState *bs);
void coroutine_fn ringway_invalidate_cache(BlockDriverState *bs, Error **errp);

/* snapshots.c */
int ringway_snapshot_create(BlockDriverState *bs, QEMUSnapshotInfo *info);
int ringway_snapshot_goto(BlockDriverState *bs, const char *snapshot);
int ringway_snapshot_delete(BlockDriverState *bs, const char *id, const char *name, Error **errp);
int ringway_snapshot_list(BlockDriverState *bs, QEMUSnapshotInfo **infos);
int ringway_snapshot_load_tmp(BlockDriverState *bs, const char *id, const char *name, Error **errp);

#endif
