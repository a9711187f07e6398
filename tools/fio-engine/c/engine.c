/*
 * fio engine for Ringway volumes: ioengine=external:PATH/libringway-fio.so
 *
 * Each job has a session of its own. setup() runs in fio's first process and only asks for the volume's size; init() runs in the job's
 * own thread or process, and everything after it too.
 *
 * Copyright 2026 the Ringway authors
 *
 * This file is compiled against the headers of fio, and what comes of it is loaded into fio:
 * SPDX-License-Identifier: GPL-2.0-only
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fio.h"
#include "optgroup.h"

#include "ringway.h"

/* fio checks the number of its interface and not the layout of its structures, which is what a wrong build breaks. */
_Static_assert(FIO_IOOPS_VERSION == 31, "these are not the headers of fio 3.33");
_Static_assert(sizeof(struct io_u) == 368, "these headers were configured otherwise than Debian's fio 3.33");
_Static_assert(sizeof(struct thread_data) == 192056, "these headers were configured otherwise than Debian's fio 3.33");

#define WHY_ROOM	512
/* How often a wait looks whether fio was told to end. */
#define SLICE_NS	500000000LL

struct options {
	void *pad;
	char *volume;
	char *transport;
	char *host;
	char *host_nqn;
	char *runtime;
	unsigned int port;
	unsigned int queues;
	unsigned int reconnect_s;
};

#define TEXT(option, field, words)							\
	{										\
		.name = option, .lname = option, .help = words,				\
		.category = FIO_OPT_C_ENGINE, .group = FIO_OPT_G_INVALID,		\
		.type = FIO_OPT_STR_STORE, .off1 = offsetof(struct options, field),	\
	}
#define NUMBER(option, field, words, otherwise)						\
	{										\
		.name = option, .lname = option, .help = words,				\
		.category = FIO_OPT_C_ENGINE, .group = FIO_OPT_G_INVALID,		\
		.type = FIO_OPT_INT, .off1 = offsetof(struct options, field),		\
		.def = otherwise,							\
	}

static struct fio_option options[] = {
	TEXT("volume", volume, "Name of the volume"),
	TEXT("transport", transport, "How to reach the target: shm, tcp or rdma [tcp with host=, else shm]"),
	TEXT("host", host, "Name or address of the target [127.0.0.1]"),
	TEXT("runtime_dir", runtime, "Runtime folder of the target, for shm"),
	TEXT("hostnqn", host_nqn, "Who we are, for a volume with a list of hosts"),
	NUMBER("port", port, "Port of the target [4420]", "4420"),
	NUMBER("queues", queues, "Queues of each job, a connection each [1]", "1"),
	NUMBER("reconnect", reconnect_s, "Seconds for which a lost target is waited for [60]", "60"),
	{ .name = NULL },
};

struct job {
	struct ringway_session *session;
	/* As many as fio may have in flight. */
	struct ringway_ended *ended;
	/* fio's buffers are the session's. */
	int shared_memory;
	char why[WHY_ROOM];
	char told[WHY_ROOM];
};

/* A session that is lost says so for each request, and again when fio asks for what was in flight: once is enough. */
static void tell(struct job *job)
{
	if (!strcmp(job->told, job->why))
		return;
	log_err("ringway: %s\n", job->why);
	memcpy(job->told, job->why, sizeof(job->told));
}

static int fail(struct thread_data *td, int error, const char *why)
{
	log_err("ringway: %s\n", why);
	td_verror(td, error, "ringway");
	return 1;
}

static int open_session(struct thread_data *td, struct ringway_session **session, struct ringway_volume *volume, unsigned int depth)
{
	const struct options *o = td->eo;
	const struct ringway_options given = {
		.transport = o->transport,
		.volume = o->volume,
		.host = o->host,
		.host_nqn = o->host_nqn,
		.runtime = o->runtime,
		.block_bytes = td_max_bs(td),
		.port = o->port,
		.queues = depth ? o->queues : 1,
		.depth = depth,
		.reconnect_s = o->reconnect_s,
	};
	char why[WHY_ROOM] = "";
	int error = ringway_open(&given, session, volume, why, sizeof(why));

	return error ? fail(td, error, why) : 0;
}

static int setup(struct thread_data *td)
{
	const struct options *o = td->eo;
	struct ringway_session *session;
	struct ringway_volume volume;
	struct fio_file *f;

	/* Every other thing that is wrong with the options is told by the first session. */
	if (open_session(td, &session, &volume, 0))
		return 1;
	ringway_close(session);
	if (!td->files_index) {
		add_file(td, o->volume, 0, 0);
		td->o.nr_files = td->o.nr_files ? : 1;
		td->o.open_files++;
	}
	if (td->files_index > 1)
		return fail(td, EINVAL, "a job has one volume: leave filename= and nrfiles= out");
	f = td->files[0];
	if (td_min_bs(td) % volume.block_bytes)
		return fail(td, EINVAL, "bs= is not a multiple of the volume's logical block");
	f->filetype = FIO_TYPE_BLOCK;
	f->real_file_size = volume.size;
	return 0;
}

static void cleanup(struct thread_data *td)
{
	struct job *job = td->io_ops_data;

	if (!job)
		return;
	td->io_ops_data = NULL;
	if (job->session)
		ringway_close(job->session);
	free(job->ended);
	free(job);
}

static int init(struct thread_data *td)
{
	struct ringway_volume volume;
	struct job *job = calloc(1, sizeof(*job));

	if (!job)
		return fail(td, ENOMEM, "no memory");
	td->io_ops_data = job;
	job->ended = calloc(td->o.iodepth, sizeof(*job->ended));
	if (!job->ended)
		return fail(td, ENOMEM, "no memory");
	return open_session(td, &job->session, &volume, td->o.iodepth);
}

static int iomem_alloc(struct thread_data *td, size_t bytes)
{
	struct job *job = td->io_ops_data;
	void *memory = ringway_alloc(job->session, bytes);

	job->shared_memory = memory != NULL;
	if (!memory && posix_memalign(&memory, page_size, bytes))
		return 1;
	td->orig_buffer = memory;
	return 0;
}

static void iomem_free(struct thread_data *td)
{
	struct job *job = td->io_ops_data;

	/* What the session gave ends with it, in cleanup(), which comes after. */
	if (!job || !job->shared_memory)
		free(td->orig_buffer);
}

static enum fio_q_status queue(struct thread_data *td, struct io_u *io_u)
{
	struct job *job = td->io_ops_data;
	uint32_t what;

	fio_ro_check(td, io_u);
	switch (io_u->ddir) {
	case DDIR_READ:
		what = RINGWAY_READ;
		break;
	case DDIR_WRITE:
		what = RINGWAY_WRITE;
		break;
	case DDIR_TRIM:
		what = RINGWAY_TRIM;
		break;
	case DDIR_SYNC:
	case DDIR_DATASYNC:
		what = RINGWAY_FLUSH;
		break;
	default:
		io_u->error = EOPNOTSUPP;
		td_verror(td, io_u->error, "ringway: sync_file_range");
		return FIO_Q_COMPLETED;
	}
	if (what == RINGWAY_FLUSH)
		io_u->error = ringway_queue(job->session, what, 0, 0, NULL, (uintptr_t)io_u, job->why, sizeof(job->why));
	else
		io_u->error = ringway_queue(job->session, what, io_u->offset, io_u->xfer_buflen, io_u->xfer_buf, (uintptr_t)io_u,
					    job->why, sizeof(job->why));
	if (io_u->error) {
		tell(job);
		td_verror(td, io_u->error, "ringway");
		return FIO_Q_COMPLETED;
	}
	return FIO_Q_QUEUED;
}

static int commit(struct thread_data *td)
{
	struct job *job = td->io_ops_data;

	/* What ends of it, getevents() tells. */
	ringway_commit(job->session);
	return 0;
}

static int getevents(struct thread_data *td, unsigned int min, unsigned int max, const struct timespec *t)
{
	struct job *job = td->io_ops_data;
	int64_t left = t ? t->tv_sec * 1000000000LL + t->tv_nsec : INT64_MAX;
	int count;

	for (;;) {
		int64_t slice = left < SLICE_NS ? left : SLICE_NS;

		count = ringway_wait(job->session, min, max, slice, job->ended);
		if (count < 0) {
			ringway_why(job->session, job->why, sizeof(job->why));
			tell(job);
			td_verror(td, -count, "ringway");
			return count;
		}
		left -= slice;
		/* Short of what was asked for: the time is over, or fio is to end and the target does not answer. */
		if (count || !min || left <= 0 || td->terminate)
			return count;
	}
}

static struct io_u *event(struct thread_data *td, int number)
{
	const struct job *job = td->io_ops_data;
	const struct ringway_ended *ended = &job->ended[number];
	struct io_u *io_u = (struct io_u *)(uintptr_t)ended->user;

	io_u->error = ended->error;
	io_u->resid = ended->error ? io_u->xfer_buflen : 0;
	return io_u;
}

static int open_file(struct thread_data *td, struct fio_file *f)
{
	return 0;
}

static int close_file(struct thread_data *td, struct fio_file *f)
{
	return 0;
}

static int invalidate(struct thread_data *td, struct fio_file *f)
{
	return 0;
}

/* fio looks for this name. */
struct ioengine_ops ioengine = {
	.name = "ringway",
	.version = FIO_IOOPS_VERSION,
	.flags = FIO_DISKLESSIO | FIO_NOEXTEND | FIO_NODISKUTIL | FIO_RAWIO | FIO_MEMALIGN,
	.setup = setup,
	.init = init,
	.queue = queue,
	.commit = commit,
	.getevents = getevents,
	.event = event,
	.cleanup = cleanup,
	.open_file = open_file,
	.close_file = close_file,
	.invalidate = invalidate,
	.iomem_alloc = iomem_alloc,
	.iomem_free = iomem_free,
	.options = options,
	.option_struct_size = sizeof(struct options),
};
