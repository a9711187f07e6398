/*
 * QEMU's side of a volume: the drivers openvstorage, openvstorage+shm, +tcp and +rdma.
 *
 * A request is handed to libovsvolumedriver, which has a thread of its own; the coroutine sleeps until that thread schedules it again in
 * the AioContext that it came from. Nothing is copied here: the library moves data between QEMU's buffers and those that it shares with
 * the target or has registered with its ring. What goes by the target's control socket may take long, and runs on QEMU's worker threads
 * where QEMU lets a driver wait there.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "ringway.h"
#include "driver.h"
#include "block/aio.h"
#include "block/thread-pool.h"
#include "qemu/coroutine.h"
#include "qemu/iov.h"
#include "qemu/units.h"

/* Requests in flight; the library lets more wait. */
#define QUEUE_DEPTH 128
/* Extents that one question for block status gets. */
#define EXTENTS 256
/* Holes that are smaller count as data: to ask for each of them costs more than to copy it. */
#define SMALL_HOLE (64 * KiB)
/* The target's unit of what is there and what is not. */
#define CLUSTER_BLOCK 4096

/* Why the last call of the library on this thread failed, as QEMU wants it. */
static int failed(Error **errp)
{
    int number = errno;

    error_setg(errp, "%s", ovs.ovs_last_error());
    return number ? -number : -EIO;
}

/* A context, with the volume where one is named. */
int ringway_connect(const Settings *settings, const char *volume, int oflag, ovs_ctx_t **made, Error **errp)
{
    ovs_ctx_attr_t *attr;
    ovs_ctx_t *ctx = NULL;
    int ret = 0;

    if (!ringway_load_library(errp)) {
        return -ENOSYS;
    }
    attr = ovs.ovs_ctx_attr_new();
    if (ovs.ovs_ctx_attr_set_transport(attr, settings->transport, settings->host, settings->port)
        || ovs.ovs_ctx_attr_set_network_qdepth(attr, QUEUE_DEPTH)
        || (settings->enable_ha && ovs.ovs_ctx_attr_enable_ha(attr))
        || !(ctx = ovs.ovs_ctx_new(attr))
        || (volume && ovs.ovs_ctx_init(ctx, volume, oflag))) {
        ret = failed(errp);
    }
    ovs.ovs_ctx_attr_destroy(attr);
    if (ret < 0 && ctx) {
        ovs.ovs_ctx_destroy(ctx);
        ctx = NULL;
    }
    *made = ctx;
    return ret;
}

/* Closes what is open, and waits for what is in flight. */
static void disconnect(RingwayState *s)
{
    if (s->ctx) {
        ovs.ovs_ctx_destroy(s->ctx);
        s->ctx = NULL;
    }
}

/* Another context in place of the one there is, which stays if there is to be no other. */
int ringway_replace(RingwayState *s, const char *volume, int oflag, Error **errp)
{
    ovs_ctx_t *next;
    int ret = ringway_connect(&s->settings, volume, oflag, &next, errp);

    if (ret >= 0) {
        disconnect(s);
        s->ctx = next;
        s->oflag = oflag;
    }
    return ret;
}

static int flags_of(int flags)
{
    /* A machine that is being moved here writes when it runs here: until then the other one has the lease. */
    return (flags & BDRV_O_RDWR) && !(flags & BDRV_O_INACTIVE) ? O_RDWR : O_RDONLY;
}

static int ringway_open(BlockDriverState *bs, QDict *options, int flags, Error **errp)
{
    RingwayState *s = bs->opaque;
    int ret = -EINVAL;

    if (ringway_settings(bs->drv->format_name, options, &s->settings, errp)) {
        s->oflag = flags_of(flags);
        ret = ringway_connect(&s->settings, s->settings.volume, s->oflag, &s->ctx, errp);
    }
    if (ret < 0) {
        ringway_free_settings(&s->settings);
        return ret;
    }
    bs->supported_zero_flags = BDRV_REQ_MAY_UNMAP | BDRV_REQ_NO_FALLBACK;
    bs->supported_truncate_flags = BDRV_REQ_ZERO_WRITE;
    return 0;
}

static void ringway_close(BlockDriverState *bs)
{
    RingwayState *s = bs->opaque;

    disconnect(s);
    ringway_free_settings(&s->settings);
}

static void ringway_refresh_filename(BlockDriverState *bs)
{
    RingwayState *s = bs->opaque;

    ringway_filename(bs->drv->format_name, &s->settings, bs->exact_filename, sizeof(bs->exact_filename));
}

static void ringway_refresh_limits(BlockDriverState *bs, Error **errp)
{
    RingwayState *s = bs->opaque;
    int block = s->ctx ? ovs.ovs_block_bytes(s->ctx) : -1;

    bs->bl.request_alignment = block > 0 ? block : BDRV_SECTOR_SIZE;
    bs->bl.pdiscard_alignment = CLUSTER_BLOCK;
    bs->bl.pwrite_zeroes_alignment = CLUSTER_BLOCK;
}

static int64_t length(RingwayState *s)
{
    struct stat found;

    if (!s->ctx) {
        return -ESHUTDOWN;
    }
    return ovs.ovs_stat(s->ctx, &found) ? -errno : found.st_size;
}

static int64_t coroutine_fn ringway_getlength(BlockDriverState *bs)
{
    return length(bs->opaque);
}

/* After a change of the volume that QEMU did not make itself. */
void ringway_note_length(BlockDriverState *bs)
{
    int64_t bytes = length(bs->opaque);

    if (bytes >= 0) {
        bs->total_sectors = DIV_ROUND_UP(bytes, BDRV_SECTOR_SIZE);
    }
}

/* A request with the library. */
typedef struct Task {
    Coroutine *coroutine;
    AioContext *context;
    ssize_t ret;
} Task;

/* On the library's thread. The coroutine may not sleep yet; it is entered by its own thread, after it does. */
static void ended(ovs_completion_t *completion, void *opaque)
{
    Task *task = opaque;
    ssize_t bytes = ovs.ovs_aio_return_completion(completion);

    task->ret = bytes < 0 ? -errno : bytes;
    ovs.ovs_aio_release_completion(completion);
    aio_co_schedule(task->context, task->coroutine);
}

/* What a request is made of. */
typedef struct Transfer {
    enum { READ, WRITE, FLUSH, DISCARD, ZERO } what;
    QEMUIOVector *qiov;
    int64_t offset;
    int64_t bytes;
} Transfer;

static int begin(ovs_ctx_t *ctx, const Transfer *asked, ovs_completion_t *completion)
{
    switch (asked->what) {
    case READ:
        return ovs.ovs_aio_readvcb(ctx, asked->qiov->iov, asked->qiov->niov, asked->offset, completion);
    case WRITE:
        return ovs.ovs_aio_writevcb(ctx, asked->qiov->iov, asked->qiov->niov, asked->offset, completion);
    case DISCARD:
        return ovs.ovs_aio_discardcb(ctx, asked->offset, asked->bytes, completion);
    case ZERO:
        return ovs.ovs_aio_write_zeroescb(ctx, asked->offset, asked->bytes, completion);
    default:
        return ovs.ovs_aio_flushcb(ctx, completion);
    }
}

static ssize_t coroutine_fn run(BlockDriverState *bs, const Transfer *asked)
{
    RingwayState *s = bs->opaque;
    Task task = { .coroutine = qemu_coroutine_self(), .context = qemu_get_current_aio_context() };
    ovs_completion_t *completion;

    if (!s->ctx) {
        return -ESHUTDOWN;
    }
    completion = ovs.ovs_aio_create_completion(ended, &task);
    if (begin(s->ctx, asked, completion) < 0) {
        int number = errno;

        ovs.ovs_aio_release_completion(completion);
        return -number;
    }
    qemu_coroutine_yield();
    return task.ret;
}

static int coroutine_fn ringway_preadv(BlockDriverState *bs, int64_t offset, int64_t bytes, QEMUIOVector *qiov,
                                       BdrvRequestFlags flags)
{
    Transfer asked = { .what = READ, .qiov = qiov, .offset = offset };
    ssize_t ret = bytes ? run(bs, &asked) : 0;

    if (ret >= 0 && ret < bytes) {
        /* The volume ends before: a rollback may have made it smaller. */
        qemu_iovec_memset(qiov, ret, 0, bytes - ret);
    }
    return ret < 0 ? ret : 0;
}

static int coroutine_fn ringway_pwritev(BlockDriverState *bs, int64_t offset, int64_t bytes, QEMUIOVector *qiov,
                                        BdrvRequestFlags flags)
{
    Transfer asked = { .what = WRITE, .qiov = qiov, .offset = offset };
    ssize_t ret = bytes ? run(bs, &asked) : 0;

    return ret < 0 ? ret : 0;
}

static int coroutine_fn ringway_flush(BlockDriverState *bs)
{
    RingwayState *s = bs->opaque;
    Transfer asked = { .what = FLUSH };

    /* Who only reads has nothing to flush. */
    return s->oflag == O_RDONLY ? 0 : run(bs, &asked);
}

/* Neither takes parts of a block; QEMU then writes zeros, or leaves them undiscarded. */
static int coroutine_fn clear(BlockDriverState *bs, const Transfer *asked)
{
    if (!QEMU_IS_ALIGNED(asked->offset | asked->bytes, bs->bl.request_alignment)) {
        return -ENOTSUP;
    }
    return run(bs, asked);
}

static int coroutine_fn ringway_pdiscard(BlockDriverState *bs, int64_t offset, int64_t bytes)
{
    Transfer asked = { .what = DISCARD, .offset = offset, .bytes = bytes };

    return clear(bs, &asked);
}

static int coroutine_fn ringway_pwrite_zeroes(BlockDriverState *bs, int64_t offset, int64_t bytes, BdrvRequestFlags flags)
{
    Transfer asked = { .what = ZERO, .offset = offset, .bytes = bytes };

    return clear(bs, &asked);
}

/* Runs a call of the library that waits on one of QEMU's worker threads. */
static int coroutine_fn in_a_worker(int (*call)(void *), void *opaque)
{
#if RINGWAY_QEMU_MAJOR < 9
    return thread_pool_submit_co(aio_get_thread_pool(qemu_get_current_aio_context()), call, opaque);
#else
    return thread_pool_submit_co(call, opaque);
#endif
}

typedef struct Status {
    ovs_ctx_t *ctx;
    int64_t offset;
    int64_t bytes;
    /* What is there, and how far. */
    bool data;
    int64_t known;
} Status;

static int ask_status(void *opaque)
{
    Status *status = opaque;
    ovs_extent_t extents[EXTENTS];
    int count = ovs.ovs_block_status(status->ctx, status->offset, status->bytes, extents, EXTENTS);

    if (count <= 0) {
        return -EIO;
    }
    status->data = extents[0].data || extents[0].nbytes < SMALL_HOLE;
    status->known = extents[0].nbytes;
    for (int at = 1; at < count; at++) {
        bool data = extents[at].data || extents[at].nbytes < SMALL_HOLE;

        if (data != status->data) {
            break;
        }
        status->known += extents[at].nbytes;
    }
    return 0;
}

static int coroutine_fn ringway_block_status(BlockDriverState *bs, bool want_zero, int64_t offset, int64_t bytes, int64_t *pnum,
                                             int64_t *map, BlockDriverState **file)
{
    RingwayState *s = bs->opaque;
    Status status = { .ctx = s->ctx, .offset = offset, .bytes = bytes };

    *map = offset;
    *file = bs;
    /* Where nobody can tell, or nobody wants to know, all of it may be data: that is always right. */
    if (!want_zero || !s->ctx || in_a_worker(ask_status, &status) < 0) {
        *pnum = bytes;
        return BDRV_BLOCK_DATA | BDRV_BLOCK_OFFSET_VALID;
    }
    *pnum = MIN(QEMU_ALIGN_UP(status.known, bs->bl.request_alignment), bytes);
    return (status.data ? BDRV_BLOCK_DATA : BDRV_BLOCK_ZERO) | BDRV_BLOCK_OFFSET_VALID;
}

typedef struct Growth {
    ovs_ctx_t *ctx;
    int64_t bytes;
    Error *error;
} Growth;

static int grow(void *opaque)
{
    Growth *growth = opaque;

    return ovs.ovs_truncate(growth->ctx, growth->bytes) ? failed(&growth->error) : 0;
}

static int coroutine_fn ringway_truncate(BlockDriverState *bs, int64_t offset, bool exact, PreallocMode prealloc,
                                         BdrvRequestFlags flags, Error **errp)
{
    RingwayState *s = bs->opaque;
    Growth growth = { .ctx = s->ctx, .bytes = offset };
    int64_t now = length(s);
    int ret;

    if (now < 0) {
        error_setg(errp, "the volume is closed");
        return now;
    }
    if (prealloc != PREALLOC_MODE_OFF) {
        error_setg(errp, "a volume's space is taken as it is written: preallocation is none but 'off'");
        return -ENOTSUP;
    }
    if (offset == now || (offset < now && !exact)) {
        return 0;
    }
    ret = in_a_worker(grow, &growth);
    error_propagate(errp, growth.error);
    return ret;
}

typedef struct Creation {
    Settings settings;
    uint64_t size;
    Error *error;
} Creation;

/* Volumes are made by the control socket of the target on this machine. Whether that is the target which the filename means is known when
 * the volume is found there. */
static int make(void *opaque)
{
    Creation *creation = opaque;
    const Settings *settings = &creation->settings;
    ovs_ctx_t *ctx = NULL;
    ovs_ctx_t *found = NULL;
    int none = 0;
    int ret = ringway_connect(settings, NULL, 0, &ctx, &creation->error);

    if (ret < 0) {
        return ret;
    }
    if (ovs.ovs_create_volume(ctx, settings->volume, creation->size)) {
        ret = failed(&creation->error);
        ovs.ovs_ctx_destroy(ctx);
        return ret;
    }
    if (ringway_connect(settings, settings->volume, O_RDONLY, &found, NULL) < 0
        || (ovs.ovs_snapshot_list(found, settings->volume, NULL, &none) < 0 && errno == ENOENT)) {
        error_setg(&creation->error, "'%s' cannot be made there: the control socket on this machine is another target's than %s's; use "
                   "`ringway volume create` where that runs", settings->volume, settings->host ?: settings->transport);
        ret = -EHOSTUNREACH;
    }
    if (found) {
        ovs.ovs_ctx_destroy(found);
    }
    if (ret < 0) {
        ovs.ovs_remove_volume(ctx, settings->volume);
    }
    ovs.ovs_ctx_destroy(ctx);
    return ret;
}

static int coroutine_fn ringway_create(BlockDriver *drv, const char *filename, QemuOpts *opts, Error **errp)
{
    Creation creation = { .size = ROUND_UP(qemu_opt_get_size_del(opts, BLOCK_OPT_SIZE, 0), BDRV_SECTOR_SIZE) };
    QDict *options = qdict_new();
    Error *error = NULL;
    int ret = -EINVAL;

    ringway_parse_filename(filename, options, &error);
    if (!error && ringway_settings(drv->format_name, options, &creation.settings, &error)) {
        ret = in_a_worker(make, &creation);
    }
    error_propagate(errp, error);
    error_propagate(errp, creation.error);
    ringway_free_settings(&creation.settings);
    qobject_unref(options);
    return ret;
}

/* The volume was made a moment ago. */
static int ringway_has_zero_init(BlockDriverState *bs)
{
    return 1;
}

static QemuOptsList create_options = {
    .name = "openvstorage-create-options",
    .head = QTAILQ_HEAD_INITIALIZER(create_options.head),
    .desc = {
        { .name = BLOCK_OPT_SIZE, .type = QEMU_OPT_SIZE, .help = "bytes of the volume" },
        { /* end of list */ }
    },
};

/* Options by which the data is another. */
static const char *const strong_options[] = { "transport", "host", "port", "volume", NULL };

/* Their members are QEMU's own idea of each driver, in the order in which they are needed. */
#define DRIVER(name) { \
    .format_name = name, \
    .protocol_name = name, \
    .instance_size = sizeof(RingwayState), \
    .create_opts = &create_options, \
    .strong_runtime_opts = strong_options, \
    .bdrv_parse_filename = ringway_parse_filename, \
    .RINGWAY_OPEN = ringway_open, \
    .bdrv_close = ringway_close, \
    .bdrv_reopen_prepare = ringway_reopen_prepare, \
    .bdrv_reopen_commit = ringway_reopen_commit, \
    .bdrv_reopen_abort = ringway_reopen_abort, \
    .bdrv_inactivate = ringway_inactivate, \
    .bdrv_co_invalidate_cache = ringway_invalidate_cache, \
    .bdrv_co_create_opts = ringway_create, \
    .bdrv_has_zero_init = ringway_has_zero_init, \
    .bdrv_refresh_filename = ringway_refresh_filename, \
    .bdrv_refresh_limits = ringway_refresh_limits, \
    .RINGWAY_GETLENGTH = ringway_getlength, \
    .bdrv_co_preadv = ringway_preadv, \
    .bdrv_co_pwritev = ringway_pwritev, \
    .bdrv_co_flush_to_disk = ringway_flush, \
    .bdrv_co_pdiscard = ringway_pdiscard, \
    .bdrv_co_pwrite_zeroes = ringway_pwrite_zeroes, \
    .bdrv_co_block_status = ringway_block_status, \
    .bdrv_co_truncate = ringway_truncate, \
    .bdrv_snapshot_create = ringway_snapshot_create, \
    .bdrv_snapshot_goto = ringway_snapshot_goto, \
    .bdrv_snapshot_delete = ringway_snapshot_delete, \
    .bdrv_snapshot_list = ringway_snapshot_list, \
    .bdrv_snapshot_load_tmp = ringway_snapshot_load_tmp, \
}

#if RINGWAY_QEMU_MAJOR < 8
#define RINGWAY_OPEN bdrv_file_open
#define RINGWAY_GETLENGTH bdrv_getlength
#else
#define RINGWAY_OPEN bdrv_open
#define RINGWAY_GETLENGTH bdrv_co_getlength
#endif

static BlockDriver drivers[] = {
    DRIVER("openvstorage"), DRIVER("openvstorage+shm"), DRIVER("openvstorage+tcp"), DRIVER("openvstorage+rdma"),
};

void ringway_register(void)
{
    for (size_t at = 0; at < G_N_ELEMENTS(drivers); at++) {
        bdrv_register(&drivers[at]);
    }
}
