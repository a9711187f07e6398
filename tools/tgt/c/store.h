/*
 * What the files of bs_openvstorage.so share. The picture: docs/edges/tgt.md.
 *
 * Threads. tgtd has one, on which it calls us and on which commands end. The library calls back on a thread of the context's. Each
 * logical unit has one more thread for commands that are several requests. Lists of requests belong to tgtd's thread but for `ended`
 * and `work`, which are under `lock`; what has ended is told to tgtd's loop by `bell`, an eventfd.
 *
 * Copyright 2026 the Ringway authors
 *
 * Compiled against the headers of tgt and loaded into tgtd:
 * SPDX-License-Identifier: GPL-2.0-only
 */
#ifndef RINGWAY_TGT_STORE_H
#define RINGWAY_TGT_STORE_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>

#include <openvstorage/volumedriver.h>

#include "list.h"
#include "tgtd.h"
#include "scsi.h"
#include "spc.h"
#include "util.h"

/* The layout of tgt 1.0.85 on 64 bits. Another version has other headers, and tgtd does not look at what it loads. */
_Static_assert(sizeof(struct backingstore_template) == 112, "these are not the headers of tgt 1.0.85");
_Static_assert(sizeof(struct scsi_cmd) == 480, "these are not the headers of tgt 1.0.85");
_Static_assert(sizeof(struct lu_phy_attr) == 1176, "these are not the headers of tgt 1.0.85");
_Static_assert(sizeof(struct scsi_lu) == 7608, "these are not the headers of tgt 1.0.85");

/* Why a command did not succeed. */
struct failure {
	int error;		/* errno; 0: it did succeed */
	uint8_t key;		/* of sense data; only where `error` is EPROTO, a fault of the command's */
	uint16_t asc;
	bool has_info;
	uint64_t info;		/* sense data's INFORMATION */
};

enum step {
	STEP_TRANSFER,		/* the read, the write or the flush that was asked for */
	STEP_FLUSH,		/* what makes a write durable */
	STEP_WORK,		/* on the unit's own thread */
};

struct request {
	struct list_head place;		/* in the unit's `active` or `waiting`, then among the spare ones */
	struct list_head way;		/* in `work`, then in `ended` */
	struct unit *unit;
	struct scsi_cmd *cmd;
	uint64_t from;			/* bytes of the volume, up to `to` */
	uint64_t to;
	uint64_t bytes;			/* of data that is moved */
	bool alone;			/* nothing else touches its bytes meanwhile */
	bool flushed;			/* its write is followed by a flush */
	enum step step;
	struct ovs_aiocb block;
	ovs_completion_t *completion;
	struct failure failure;
};

/* Behind tgt's logical unit. */
struct unit {
	struct scsi_lu *lu;
	/* options */
	bool high_availability;
	/* while it is open */
	ovs_ctx_t *ctx;
	bool read_only;			/* a snapshot */
	int bell;
	pthread_t worker;
	uint8_t *scratch;
	struct service_action actions[3];
	/* of tgtd's thread */
	struct list_head active;
	struct list_head waiting;	/* the oldest first */
	struct list_head spare;
	unsigned int alone;		/* such requests, active or waiting */
	bool open;
	/* of all */
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct list_head work;
	struct list_head ended;
	bool stop;
};

#define SCRATCH_BYTES	(256u << 10)
/* Of one UNMAP. What tgt says by itself, 2^32 - 1, is more than its list can have. */
#define UNMAP_RANGES_MAX	256

/* path.c */
enum transport { TRANSPORT_SHM, TRANSPORT_TCP, TRANSPORT_RDMA };
struct place {
	char *text;			/* what the others point into; to be freed */
	const char *host;		/* NULL with shm */
	int port;			/* 0: the library's default */
	const char *volume;
};
/* Both say what is wrong in `why`, and return -1. */
int place_parse(const char *path, enum transport transport, struct place *place, bool *high_availability, char *why, size_t room);
int option_parse(const char *option, bool *high_availability, char *why, size_t room);

/* commands.c */
extern const unsigned char unit_opcodes[];
extern const int unit_opcodes_count;
int unit_submit(struct scsi_cmd *cmd);
int unit_lba_status(int host_no, struct scsi_cmd *cmd);
void unit_on_bell(int fd, int events, void *data);
/* Until nothing is active or waits. */
void unit_drain(struct unit *unit);
/* From any thread. */
void request_ended(struct request *request);

/* work.c */
void *unit_work(void *unit);

static inline struct unit *unit_of(struct scsi_lu *lu)
{
	return (struct unit *)(void *)((char *)lu + sizeof(*lu));
}

/* A fault of the command's: ILLEGAL REQUEST and the like. */
static inline struct failure refused(uint8_t key, uint16_t asc)
{
	return (struct failure){ .error = EPROTO, .key = key, .asc = asc };
}

static inline struct failure failed(int error)
{
	return (struct failure){ .error = error };
}

#endif
