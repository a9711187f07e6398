/*
 * Reading and writing: a volume has one writer, by a lease that its context has. A context is exchanged for another when QEMU begins or
 * ceases to write: by a reopen, and when a machine is moved.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "driver.h"

/* QEMU has let everything end. A reader beside the writer is no matter, so the new context is made first: if that fails nothing changed. */
int ringway_reopen_prepare(BDRVReopenState *state, BlockReopenQueue *queue, Error **errp)
{
    RingwayState *s = state->bs->opaque;
    int oflag = state->flags & BDRV_O_RDWR ? O_RDWR : O_RDONLY;
    RingwayState *next;
    int ret;

    if (oflag == s->oflag && s->ctx) {
        return 0;
    }
    next = g_new0(RingwayState, 1);
    next->oflag = oflag;
    ret = ringway_connect(&s->settings, s->settings.volume, oflag, &next->ctx, errp);
    if (ret < 0) {
        g_free(next);
        return ret;
    }
    state->opaque = next;
    return 0;
}

void ringway_reopen_commit(BDRVReopenState *state)
{
    RingwayState *s = state->bs->opaque;
    RingwayState *next = state->opaque;

    if (next) {
        if (s->ctx) {
            ovs.ovs_ctx_destroy(s->ctx);
        }
        s->ctx = next->ctx;
        s->oflag = next->oflag;
        g_free(next);
        state->opaque = NULL;
    }
}

void ringway_reopen_abort(BDRVReopenState *state)
{
    RingwayState *next = state->opaque;

    if (next) {
        ovs.ovs_ctx_destroy(next->ctx);
        g_free(next);
        state->opaque = NULL;
    }
}

/* The machine runs elsewhere from now on, and writes from there. */
int ringway_inactivate(BlockDriverState *bs)
{
    RingwayState *s = bs->opaque;

    if (s->oflag == O_RDONLY || !s->ctx) {
        return 0;
    }
    if (ovs.ovs_flush(s->ctx)) {
        return -errno;
    }
    return ringway_replace(s, s->settings.volume, O_RDONLY, NULL);
}

/* It runs here from now on. */
void coroutine_fn ringway_invalidate_cache(BlockDriverState *bs, Error **errp)
{
    RingwayState *s = bs->opaque;

    if ((bs->open_flags & BDRV_O_RDWR) && (s->oflag == O_RDONLY || !s->ctx)) {
        ringway_replace(s, s->settings.volume, O_RDWR, errp);
    }
}
