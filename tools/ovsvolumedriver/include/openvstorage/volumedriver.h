/*
 * Volumes of Ringway for programs written against Open vStorage's volume driver library.
 *
 * Calls that return int or ssize_t return 0 or a count, or -1 with errno; calls that return a pointer return NULL with errno.
 * Any call may be made from any thread. Callbacks run on a thread of the library and must not call what waits (EDEADLK).
 * Manual: docs/edges/libovsvolumedriver.md.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#ifndef OPENVSTORAGE_VOLUMEDRIVER_H
#define OPENVSTORAGE_VOLUMEDRIVER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ovs_buffer ovs_buffer_t;
typedef struct ovs_context_t ovs_ctx_t;
typedef struct ovs_context_attr_t ovs_ctx_attr_t;
typedef struct ovs_aio_request ovs_aio_request;
typedef struct ovs_completion ovs_completion_t;
typedef void (*ovs_callback_t)(ovs_completion_t *cb, void *arg);

typedef struct ovs_snapshot_info {
	const char *name;	/* NULL behind the last */
	uint64_t size;		/* of the volume, bytes */
} ovs_snapshot_info_t;

struct ovs_aiocb {
	void *aio_buf;
	off_t aio_offset;
	size_t aio_nbytes;
	ovs_aio_request *request_;	/* the library's, until ovs_aio_finish */
};

/* What a context is made with: no transport, 64 requests in flight, high availability off. */
ovs_ctx_attr_t *ovs_ctx_attr_new();
int ovs_ctx_attr_destroy(ovs_ctx_attr_t *attr);
/* transport: NULL or "shm", or "tcp" or "rdma" with HOST[:PORT][,HOST[:PORT]...], which is resolved at once; port 0 is 21321. */
int ovs_ctx_attr_set_transport(ovs_ctx_attr_t *attr, const char *transport, const char *host, int port);
int ovs_ctx_attr_set_network_qdepth(ovs_ctx_attr_t *attr, const uint64_t qdepth);
/* A target that goes away is waited for; what was in flight is sent again. */
int ovs_ctx_attr_enable_ha(ovs_ctx_attr_t *attr);
/* Ringway's: the volume may have other writers. Without it a context that writes has the lease of the one writer, or EBUSY. */
int ovs_ctx_attr_share_volume(ovs_ctx_attr_t *attr);
/*
 * Ringway's: who is asked about volumes, snapshots and streams. "https://HOST:PORT" with the files of who signed its certificate and of its
 * token (NULL: those that RINGWAY_CONTROL_CA and RINGWAY_CONTROL_TOKEN_FILE name), which are read at once; or the path of a control socket;
 * or NULL: the target of this machine.
 */
int ovs_ctx_attr_set_control(ovs_ctx_attr_t *attr, const char *control, const char *authority_file, const char *token_file);

/* Contexts. A context belongs to the process that made it: after fork, ESHUTDOWN in the child. */
ovs_ctx_t *ovs_ctx_new(const ovs_ctx_attr_t *attr);
int ovs_ctx_init(ovs_ctx_t *ctx, const char *volume_name, int oflag);
int ovs_ctx_destroy(ovs_ctx_t *ctx);

/* Volumes; no ovs_ctx_init needed. */
int ovs_create_volume(ovs_ctx_t *ctx, const char *volume_name, uint64_t size);
int ovs_remove_volume(ovs_ctx_t *ctx, const char *volume_name);
int ovs_truncate_volume(ovs_ctx_t *ctx, const char *volume_name, uint64_t length);
int ovs_list_volumes(ovs_ctx_t *ctx, char *names, size_t *size);
/* Ringway's: a volume that lies over a snapshot. */
int ovs_volume_clone(ovs_ctx_t *ctx, const char *volume_name, const char *snap_name, const char *clone_name);

/* Snapshots. timeout in seconds: 0 for ever, negative: do not wait for the backend. */
int ovs_snapshot_create(ovs_ctx_t *ctx, const char *volume_name, const char *snap_name, const int64_t timeout);
int ovs_snapshot_rollback(ovs_ctx_t *ctx, const char *volume_name, const char *snap_name);
int ovs_snapshot_list(ovs_ctx_t *ctx, const char *volume_name, ovs_snapshot_info_t *snap_list, int *max_snaps);
void ovs_snapshot_list_free(ovs_snapshot_info_t *snap_list);
int ovs_snapshot_remove(ovs_ctx_t *ctx, const char *volume_name, const char *snap_name);
int ovs_snapshot_is_synced(ovs_ctx_t *ctx, const char *volume_name, const char *snap_name);
/* Ringway's: when it was made, in seconds since 1970, UTC. */
int64_t ovs_snapshot_time(ovs_ctx_t *ctx, const char *volume_name, const char *snap_name);
/* Ringway's: milliseconds. */
int ovs_snapshot_create_ms(ovs_ctx_t *ctx, const char *volume_name, const char *snap_name, int64_t timeout_ms);

/* Buffers; with transport shm they are moved without a copy. */
ovs_buffer_t *ovs_allocate(ovs_ctx_t *ctx, size_t size);
void *ovs_buffer_data(ovs_buffer_t *ptr);
size_t ovs_buffer_size(ovs_buffer_t *ptr);
int ovs_deallocate(ovs_ctx_t *ctx, ovs_buffer_t *ptr);

/* Data; ovs_ctx_init needed. Offsets and lengths are any for reads and writes. */
ssize_t ovs_read(ovs_ctx_t *ctx, void *buf, size_t nbytes, off_t offset);
ssize_t ovs_write(ovs_ctx_t *ctx, const void *buf, size_t nbytes, off_t offset);
int ovs_flush(ovs_ctx_t *ctx);
int ovs_stat(ovs_ctx_t *ctx, struct stat *buf);
int ovs_truncate(ovs_ctx_t *ctx, uint64_t length);
/* Ringway's. Discards and zeroes are of whole blocks of ovs_block_bytes. */
ssize_t ovs_readv(ovs_ctx_t *ctx, const struct iovec *iov, int iovcnt, off_t offset);
ssize_t ovs_writev(ovs_ctx_t *ctx, const struct iovec *iov, int iovcnt, off_t offset);
int ovs_discard(ovs_ctx_t *ctx, off_t offset, uint64_t nbytes);
int ovs_write_zeroes(ovs_ctx_t *ctx, off_t offset, uint64_t nbytes);
int ovs_block_bytes(ovs_ctx_t *ctx);
/* Ringway's: what lies at offset and behind it, up to nbytes in at most max extents. Returns how many, at least one; they may end sooner. */
typedef struct ovs_extent {
	uint64_t nbytes;
	int data;	/* 0: a hole, which reads as zeros */
} ovs_extent_t;
int ovs_block_status(ovs_ctx_t *ctx, off_t offset, uint64_t nbytes, ovs_extent_t *extents, int max);

/* The same without waiting. timeout is a moment of CLOCK_REALTIME; after it EAGAIN. */
int ovs_aio_suspend(ovs_ctx_t *ctx, struct ovs_aiocb *ovs_aiocb, const struct timespec *timeout);
int ovs_aio_error(ovs_ctx_t *ctx, struct ovs_aiocb *ovs_aiocbp);
ssize_t ovs_aio_return(ovs_ctx_t *ctx, struct ovs_aiocb *ovs_aiocbp);
int ovs_aio_cancel(ovs_ctx_t *ctx, struct ovs_aiocb *ovs_aiocbp);
int ovs_aio_finish(ovs_ctx_t *ctx, struct ovs_aiocb *ovs_aiocbp);
int ovs_aio_read(ovs_ctx_t *ctx, struct ovs_aiocb *ovs_aiocbp);
int ovs_aio_write(ovs_ctx_t *ctx, struct ovs_aiocb *ovs_aiocbp);
int ovs_aio_readcb(ovs_ctx_t *ctx, struct ovs_aiocb *ovs_aiocbp, ovs_completion_t *completion);
int ovs_aio_writecb(ovs_ctx_t *ctx, struct ovs_aiocb *ovs_aiocbp, ovs_completion_t *completion);
int ovs_aio_flushcb(ovs_ctx_t *ctx, ovs_completion_t *completion);
/* Ringway's; as flushcb without a control block. iov itself may go when the call returns, its parts when the callback runs. */
int ovs_aio_readvcb(ovs_ctx_t *ctx, const struct iovec *iov, int iovcnt, off_t offset, ovs_completion_t *completion);
int ovs_aio_writevcb(ovs_ctx_t *ctx, const struct iovec *iov, int iovcnt, off_t offset, ovs_completion_t *completion);
int ovs_aio_discardcb(ovs_ctx_t *ctx, off_t offset, uint64_t nbytes, ovs_completion_t *completion);
int ovs_aio_write_zeroescb(ovs_ctx_t *ctx, off_t offset, uint64_t nbytes, ovs_completion_t *completion);

/* Completions: one for each request. */
ovs_completion_t *ovs_aio_create_completion(ovs_callback_t complete_cb, void *arg);
ssize_t ovs_aio_return_completion(ovs_completion_t *completion);
int ovs_aio_wait_completion(ovs_completion_t *completion, const struct timespec *timeout);
int ovs_aio_signal_completion(ovs_completion_t *completion);
int ovs_aio_release_completion(ovs_completion_t *completion);

/*
 * Ringway's: streams. A clone (ovs_volume_clone) gets what it still has from its parent, until it needs that no more; one job a clone, which
 * goes on over restarts of the target, and whose last event is told once.
 */
enum { OVS_STREAM_REPORT, OVS_STREAM_STOP, OVS_STREAM_IGNORE }; /* about an error: end, pause, or go on and try again */
enum { OVS_STREAM_RUNNING, OVS_STREAM_FINISHING, OVS_STREAM_RETRYING, OVS_STREAM_PAUSED };

typedef struct ovs_stream_info {
	uint64_t job;
	uint64_t cur, end;	/* progress; cur never goes back */
	uint64_t copied;	/* bytes */
	uint64_t speed;		/* bytes a second at most; 0: no limit */
	int status;		/* OVS_STREAM_RUNNING ... */
	int on_error;		/* OVS_STREAM_REPORT ... */
	char error[256];	/* met last, "": none */
} ovs_stream_info_t;

/* A job; speed 0: no limit. *job, unless NULL, is its number. EBUSY: the clone has one. */
int ovs_stream_start(ovs_ctx_t *ctx, const char *volume_name, uint64_t speed, int on_error, uint64_t *job);
/* One increment from *cursor on, 0 at first. Where *cursor == *end the clone is independent. */
int ovs_stream_step(ovs_ctx_t *ctx, const char *volume_name, uint64_t *cursor, uint64_t *end);
int ovs_stream_info(ovs_ctx_t *ctx, const char *volume_name, ovs_stream_info_t *info);
/* The clones that have a job: as ovs_list_volumes. */
int ovs_stream_list(ovs_ctx_t *ctx, char *names, size_t *size);
int ovs_stream_set_speed(ovs_ctx_t *ctx, const char *volume_name, uint64_t speed);
int ovs_stream_resume(ovs_ctx_t *ctx, const char *volume_name);
/* At once; what was copied and the parent stay. */
int ovs_stream_abort(ovs_ctx_t *ctx, const char *volume_name);

enum {
	OVS_STREAM_STARTED = 1,
	OVS_STREAM_COMPLETED,	/* the last of its job: the clone is independent */
	OVS_STREAM_FAILED,	/* the last of its job: error says why */
	OVS_STREAM_CANCELLED,	/* the last of its job */
	OVS_STREAM_PAUSED_BY_ERROR,
	OVS_STREAM_RESUMED,
	OVS_STREAM_MET_ERROR,
	OVS_STREAM_EVENTS_LOST,	/* events up to number are not kept any more */
	OVS_STREAM_OVER		/* the listener is over: error and text say why */
};

typedef struct ovs_stream_event {
	uint64_t number;	/* ascending; listen since it to get what comes after */
	uint64_t job;
	uint64_t bytes;		/* copied, at the end of a job */
	int kind;
	int error;
	const char *volume;	/* good during the callback, as is text */
	const char *text;
} ovs_stream_event_t;

typedef struct ovs_stream_listener ovs_stream_listener_t;
typedef void (*ovs_stream_callback_t)(const ovs_stream_event_t *event, void *arg);
#define OVS_STREAM_FROM_NOW UINT64_MAX

/* Calls back on a thread of the library for each event above since (0: all that are kept), once each, also over restarts of the target. */
ovs_stream_listener_t *ovs_stream_listen(ovs_ctx_t *ctx, uint64_t since, ovs_stream_callback_t callback, void *arg);
/* When it returns the callback does not run and will not. Not from the callback: EDEADLK. */
int ovs_stream_unlisten(ovs_stream_listener_t *listener);

/* Ringway's: why the last call of this thread that failed did, in words; good until the next one fails. Never NULL. */
const char *ovs_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
