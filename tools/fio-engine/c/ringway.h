/*
 * What the engine calls: ../src/abi.rs, linked into the same shared object. Texts are written into the caller's buffer.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT
 */
#ifndef RINGWAY_H
#define RINGWAY_H

#include <stddef.h>
#include <stdint.h>

struct ringway_session;

/* Texts may be NULL: not given. */
struct ringway_options {
	const char *transport;
	const char *volume;
	const char *host;
	const char *host_nqn;
	const char *runtime;
	uint64_t block_bytes;
	uint32_t port;
	uint32_t queues;
	uint32_t depth;
	uint32_t reconnect_s;
};

struct ringway_volume {
	uint64_t size;
	uint32_t block_bytes;
};

struct ringway_ended {
	uint64_t user;
	int32_t error;
};

_Static_assert(sizeof(struct ringway_options) == 64, "as in abi.rs");
_Static_assert(sizeof(struct ringway_volume) == 16, "as in abi.rs");
_Static_assert(sizeof(struct ringway_ended) == 16, "as in abi.rs");

enum ringway_what {
	RINGWAY_READ,
	RINGWAY_WRITE,
	RINGWAY_FLUSH,
	RINGWAY_TRIM,
};

/* 0, or an errno and the reason. */
int ringway_open(const struct ringway_options *options, struct ringway_session **session, struct ringway_volume *volume, char *why,
		 size_t why_room);
/* Memory for buffers that needs no copy on its way; NULL where there is none. Once a session; it ends with it. */
void *ringway_alloc(struct ringway_session *session, size_t bytes);
/* 0, or an errno and the reason: the request has not begun. */
int ringway_queue(struct ringway_session *session, uint32_t what, uint64_t offset, uint64_t len, void *data, uint64_t user, char *why,
		  size_t why_room);
/* 0 or an errno. */
int ringway_commit(struct ringway_session *session);
/* How many ended, or a negative errno when nothing more will. A negative timeout waits for ever. */
int ringway_wait(struct ringway_session *session, uint32_t min, uint32_t max, int64_t timeout_ns, struct ringway_ended *ended);
/* Why nothing more will end. */
void ringway_why(struct ringway_session *session, char *why, size_t why_room);
void ringway_close(struct ringway_session *session);

#endif
