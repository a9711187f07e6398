/*
 * What programs of this library have always relied on, one function a behaviour, against a target that runs:
 *   conformance TRANSPORT HOST PORT BEHAVIOUR...
 * No behaviour: all of them. Each makes the volumes it needs and removes them.
 */
#include <pthread.h>
#include <sys/wait.h>

#include "check.h"

#define MIB (1ULL << 20)
#define TIB (1ULL << 40)

const char *transport, *host;
int port;

static void create_destroy_context(void)
{
	ovs_ctx_attr_t *attr = ovs_ctx_attr_new();
	NONE(ovs_ctx_new(attr), EINVAL); /* no transport */
	CHECK(ovs_ctx_attr_set_transport(attr, transport, host, port) == 0);
	ovs_ctx_t *ctx = ovs_ctx_new(attr);
	CHECK(ctx != NULL);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	CHECK(ovs_ctx_attr_destroy(attr) == 0);
}

static void uri(void)
{
	ovs_ctx_attr_t *attr = ovs_ctx_attr_new();
	CHECK(ovs_ctx_attr_set_transport(attr, NULL, NULL, 0) == 0);
	CHECK(ovs_ctx_attr_set_transport(attr, "shm", "ignored", -1) == 0);
	FAILS(ovs_ctx_attr_set_transport(attr, "tcp", NULL, 21321), EINVAL);
	FAILS(ovs_ctx_attr_set_transport(attr, "carrier-pigeon", "127.0.0.1", 21321), EINVAL);
	FAILS(ovs_ctx_attr_set_transport(attr, "tcp", "no-such-host.invalid", 21321), EIO);
	FAILS(ovs_ctx_attr_set_transport(attr, "tcp", "", 21321), EINVAL);
	FAILS(ovs_ctx_attr_set_transport(attr, "tcp", "127.0.0.1", 65536), EINVAL);
	CHECK(ovs_ctx_attr_set_transport(attr, "tcp", "127.0.0.1,127.0.0.2:4420", 0) == 0);
	FAILS(ovs_ctx_attr_set_network_qdepth(attr, 0), EINVAL);
	CHECK(ovs_ctx_attr_set_network_qdepth(attr, 256) == 0);
	FAILS(ovs_ctx_attr_enable_ha(NULL), EINVAL);
	CHECK(ovs_ctx_attr_enable_ha(attr) == 0);
	CHECK(ovs_ctx_attr_destroy(attr) == 0);
}

static void connect_to_nonexistent_port(void)
{
	ovs_ctx_attr_t *attr = ovs_ctx_attr_new();
	CHECK(ovs_ctx_attr_set_transport(attr, "tcp", "127.0.0.1", 1) == 0);
	NONE(ovs_ctx_new(attr), ECONNREFUSED);
	CHECK(ovs_ctx_attr_destroy(attr) == 0);
}

static void list_of_uris(void)
{
	char list[128];
	if (is_shm())
		return;
	ovs_ctx_attr_t *attr = ovs_ctx_attr_new();
	snprintf(list, sizeof list, "127.0.0.1:1,%s:%d", host, port);
	CHECK(ovs_ctx_attr_set_transport(attr, transport, list, 2) == 0);
	ovs_ctx_t *ctx = ovs_ctx_new(attr);
	CHECK(ctx != NULL);
	CHECK(ovs_create_volume(ctx, "uris", MIB) == 0);
	CHECK(ovs_ctx_init(ctx, "uris", O_RDWR) == 0);
	CHECK(ovs_write(ctx, "x", 1, 0) == 1);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	ctx = context();
	CHECK(ovs_remove_volume(ctx, "uris") == 0);
	CHECK(ovs_ctx_destroy(ctx) == 0 && ovs_ctx_attr_destroy(attr) == 0);
}

static void non_existent_volume(void)
{
	ovs_ctx_t *ctx = context();
	FAILS(ovs_ctx_init(ctx, "non_existent", O_RDWR), is_shm() ? EACCES : ENOENT);
	CHECK(ovs_ctx_destroy(ctx) == 0);
}

static void remove_non_existent_volume(void)
{
	ovs_ctx_t *ctx = context();
	FAILS(ovs_remove_volume(ctx, "non_existent"), ENOENT);
	CHECK(ovs_ctx_destroy(ctx) == 0);
}

static void already_created_volume(void)
{
	ovs_ctx_t *ctx = context();
	CHECK(ovs_create_volume(ctx, "twice", MIB) == 0);
	FAILS(ovs_create_volume(ctx, "twice", MIB), EEXIST);
	FAILS(ovs_create_volume(ctx, "nothing", 0), EINVAL);
	CHECK(ovs_remove_volume(ctx, "twice") == 0);
	CHECK(ovs_ctx_destroy(ctx) == 0);
}

static void open_same_volume_twice(void)
{
	ovs_ctx_t *admin = context(), *first, *second;
	CHECK(ovs_create_volume(admin, "one-writer", MIB) == 0);
	first = opened("one-writer", O_RDWR);
	second = context();
	FAILS(ovs_ctx_init(second, "one-writer", O_RDWR), EBUSY);
	FAILS(ovs_ctx_init(second, "one-writer", O_WRONLY), EBUSY);
	CHECK(ovs_ctx_init(second, "one-writer", O_RDONLY) == 0); /* reads without the lease */
	FAILS(ovs_ctx_init(second, "one-writer", O_RDONLY), EBUSY); /* a context has one volume */
	CHECK(ovs_write(first, "a", 1, 0) == 1);
	FAILS(ovs_remove_volume(admin, "one-writer"), EBUSY);

	ovs_ctx_attr_t *attr = attributes(); /* on purpose */
	CHECK(ovs_ctx_attr_share_volume(attr) == 0);
	ovs_ctx_t *sharing = ovs_ctx_new(attr);
	CHECK(sharing != NULL && ovs_ctx_init(sharing, "one-writer", O_RDWR) == 0);
	CHECK(ovs_write(sharing, "b", 1, 1) == 1);
	CHECK(ovs_ctx_destroy(sharing) == 0 && ovs_ctx_attr_destroy(attr) == 0);

	CHECK(ovs_ctx_destroy(first) == 0); /* the lease is free again */
	first = opened("one-writer", O_RDWR);
	char read[2];
	CHECK(ovs_read(first, read, 2, 0) == 2 && memcmp(read, "ab", 2) == 0);
	CHECK(ovs_ctx_destroy(first) == 0 && ovs_ctx_destroy(second) == 0);
	CHECK(ovs_remove_volume(admin, "one-writer") == 0);
	CHECK(ovs_ctx_destroy(admin) == 0);
}

static void create_write_read_destroy(void)
{
	const char pattern[] = "openvstorage1";
	ovs_ctx_t *ctx = context();
	CHECK(ovs_create_volume(ctx, "pattern", 4 * MIB) == 0);
	CHECK(ovs_ctx_init(ctx, "pattern", O_RDWR) == 0);
	ovs_buffer_t *out = ovs_allocate(ctx, sizeof pattern), *in = ovs_allocate(ctx, sizeof pattern);
	CHECK(out != NULL && in != NULL && ovs_buffer_size(in) == sizeof pattern);
	memcpy(ovs_buffer_data(out), pattern, sizeof pattern);
	CHECK(ovs_write(ctx, ovs_buffer_data(out), sizeof pattern, 1024) == sizeof pattern);
	CHECK(ovs_read(ctx, ovs_buffer_data(in), sizeof pattern, 1024) == sizeof pattern);
	CHECK(memcmp(ovs_buffer_data(in), pattern, sizeof pattern) == 0);
	CHECK(ovs_deallocate(ctx, out) == 0 && ovs_deallocate(ctx, in) == 0);
	FAILS(ovs_deallocate(ctx, in), EFAULT);
	FAILS(ovs_deallocate(ctx, (ovs_buffer_t *)pattern), EFAULT);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	ctx = context();
	CHECK(ovs_remove_volume(ctx, "pattern") == 0);
	CHECK(ovs_ctx_destroy(ctx) == 0);
}

/* Any bytes at any offset, and large requests, against a copy in memory; from buffers of both kinds. */
static void any_bytes(void)
{
	const size_t size = 4 * MIB, largest = 3 * MIB;
	ovs_ctx_t *ctx = context();
	CHECK(ovs_create_volume(ctx, "bytes", size) == 0);
	CHECK(ovs_ctx_init(ctx, "bytes", O_RDWR) == 0);
	unsigned char *model = calloc(1, size), *heap = malloc(largest);
	ovs_buffer_t *slice = ovs_allocate(ctx, largest);
	CHECK(model && heap && slice);
	srand(7);
	for (int n = 0; n < 200; n++) {
		unsigned char *from = n % 2 ? heap : ovs_buffer_data(slice);
		size_t len = n % 20 == 0 ? largest : 1 + (size_t)rand() % 20000, at = (size_t)rand() % (size - len);
		if (n % 3 == 0) {
			len = (len + 4095) / 4096 * 4096;
			at = at / 4096 * 4096;
			if (len > largest || at + len > size)
				continue;
		}
		for (size_t i = 0; i < len; i++)
			from[i] = (unsigned char)(n + i % 251);
		CHECK(ovs_write(ctx, from, len, (off_t)at) == (ssize_t)len);
		memcpy(model + at, from, len);
		memset(from, 0, len);
		size_t before = at > 700 ? at - 700 : 0;
		size_t all = len + (at - before) > largest ? largest : len + (at - before);
		CHECK(ovs_read(ctx, from, all, (off_t)before) == (ssize_t)all);
		CHECK(memcmp(from, model + before, all) == 0);
	}
	CHECK(ovs_deallocate(ctx, slice) == 0);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	ctx = context();
	CHECK(ovs_remove_volume(ctx, "bytes") == 0);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	free(model);
	free(heap);
}

struct called {
	pthread_t thread;
	ssize_t returned;
	int count;
	struct ovs_aiocb *aiocb;
	ovs_ctx_t *ctx;
};

static void on_end(ovs_completion_t *completion, void *arg)
{
	struct called *called = arg;
	called->thread = pthread_self();
	called->returned = ovs_aio_return_completion(completion);
	called->count++;
	char byte;
	if (called->ctx)
		FAILS(ovs_read(called->ctx, &byte, 1, 0), EDEADLK); /* it would wait for this very thread */
	CHECK(ovs_aio_signal_completion(completion) == 0);
}

static void write_and_read_by_callback(ovs_ctx_t *ctx)
{
	char out[4096], in[4096] = { 0 };
	memset(out, 'c', sizeof out);
	for (int reading = 0; reading < 2; reading++) {
		struct ovs_aiocb aiocb = { reading ? in : out, 8192, sizeof out, NULL };
		struct called called = { .ctx = ctx };
		ovs_completion_t *completion = ovs_aio_create_completion(on_end, &called);
		CHECK(completion != NULL);
		CHECK((reading ? ovs_aio_readcb : ovs_aio_writecb)(ctx, &aiocb, completion) == 0);
		struct timespec limit = after_ms(60000);
		CHECK(ovs_aio_wait_completion(completion, &limit) == 0);
		CHECK(called.count == 1 && called.returned == sizeof out);
		CHECK(!pthread_equal(called.thread, pthread_self()));
		CHECK(ovs_aio_error(ctx, &aiocb) == 0);
		CHECK(ovs_aio_return(ctx, &aiocb) == sizeof out);
		CHECK(ovs_aio_finish(ctx, &aiocb) == 0);
		FAILS(ovs_aio_finish(ctx, &aiocb), EINVAL);
		CHECK(ovs_aio_release_completion(completion) == 0);
		FAILS(ovs_aio_release_completion(completion), EINVAL);
	}
	CHECK(memcmp(in, out, sizeof in) == 0);
	struct called called = { 0 };
	ovs_completion_t *flushed = ovs_aio_create_completion(on_end, &called);
	CHECK(ovs_aio_flushcb(ctx, flushed) == 0);
	CHECK(ovs_aio_wait_completion(flushed, NULL) == 0);
	CHECK(ovs_aio_return_completion(flushed) == 0);
	CHECK(ovs_aio_release_completion(flushed) == 0);
}

static void completion(void)
{
	ovs_ctx_t *admin = context();
	CHECK(ovs_create_volume(admin, "completion", MIB) == 0);
	ovs_ctx_t *ctx = opened("completion", O_RDWR);
	write_and_read_by_callback(ctx);
	struct called called = { 0 };
	ovs_completion_t *waiting = ovs_aio_create_completion(on_end, &called);
	struct timespec soon = after_ms(20);
	FAILS(ovs_aio_wait_completion(waiting, &soon), EAGAIN);
	FAILS(ovs_aio_return_completion(waiting), EINPROGRESS);
	CHECK(ovs_aio_release_completion(waiting) == 0);
	NONE(ovs_aio_create_completion(NULL, NULL), EINVAL);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	CHECK(ovs_remove_volume(admin, "completion") == 0 && ovs_ctx_destroy(admin) == 0);
}

static void completion_two_ctxs(void)
{
	ovs_ctx_t *admin = context();
	CHECK(ovs_create_volume(admin, "two-a", MIB) == 0 && ovs_create_volume(admin, "two-b", MIB) == 0);
	ovs_ctx_t *a = opened("two-a", O_RDWR), *b = opened("two-b", O_RDWR);
	write_and_read_by_callback(a);
	write_and_read_by_callback(b);
	CHECK(ovs_ctx_destroy(a) == 0 && ovs_ctx_destroy(b) == 0);
	CHECK(ovs_remove_volume(admin, "two-a") == 0 && ovs_remove_volume(admin, "two-b") == 0);
	CHECK(ovs_ctx_destroy(admin) == 0);
}

static void stat_of_a_volume(void)
{
	struct stat found;
	ovs_ctx_t *admin = context();
	CHECK(ovs_create_volume(admin, "stat", 3 * MIB) == 0);
	ovs_ctx_t *ctx = opened("stat", O_RDONLY);
	CHECK(ovs_stat(ctx, &found) == 0);
	CHECK(found.st_size == 3 * MIB && found.st_blksize == 512);
	FAILS(ovs_stat(ctx, NULL), EINVAL);
	FAILS(ovs_stat(admin, &found), EINVAL); /* no ovs_ctx_init */
	CHECK(ovs_ctx_destroy(ctx) == 0);
	CHECK(ovs_remove_volume(admin, "stat") == 0 && ovs_ctx_destroy(admin) == 0);
}

static void list_volumes(void)
{
	ovs_ctx_t *ctx = context();
	for (int n = 0; n < 5; n++) {
		char name[16];
		snprintf(name, sizeof name, "list/vol%d", n);
		CHECK(ovs_create_volume(ctx, name, MIB) == 0);
	}
	size_t size = 1;
	char *names = malloc(size);
	int bytes, seen = 0;
	while ((bytes = ovs_list_volumes(ctx, names, &size)) == -1 && errno == ERANGE)
		names = realloc(names, size);
	CHECK(bytes >= 50 && (size_t)bytes <= size);
	for (int at = 0; at < bytes; at += (int)strlen(names + at) + 1)
		seen += strncmp(names + at, "list/vol", 8) == 0;
	CHECK(seen == 5);
	FAILS(ovs_list_volumes(ctx, names, NULL), EINVAL);
	for (int n = 0; n < 5; n++) {
		char name[16];
		snprintf(name, sizeof name, "list/vol%d", n);
		CHECK(ovs_remove_volume(ctx, name) == 0);
	}
	free(names);
	CHECK(ovs_ctx_destroy(ctx) == 0);
}

static void create_rollback_list_remove_snapshot(void)
{
	ovs_ctx_t *ctx = context();
	ovs_snapshot_info_t list[8];
	int max = 1;
	CHECK(ovs_create_volume(ctx, "snaps", MIB) == 0);
	FAILS(ovs_snapshot_create(ctx, "missing", "snap1", 0), ENOENT);
	ovs_ctx_t *writer = opened("snaps", O_RDWR);
	CHECK(ovs_write(writer, "one", 3, 0) == 3);
	CHECK(ovs_snapshot_create(ctx, "snaps", "snap1", 10) == 0);
	CHECK(ovs_snapshot_time(ctx, "snaps", "snap1") > time(NULL) - 3600);
	FAILS(ovs_snapshot_time(ctx, "snaps", "missing"), ENOENT);
	CHECK(ovs_write(writer, "two", 3, 0) == 3);
	CHECK(ovs_snapshot_create(ctx, "snaps", "snap2", 0) == 0);
	FAILS(ovs_snapshot_create(ctx, "snaps", "snap2", 0), EEXIST);
	CHECK(ovs_snapshot_is_synced(ctx, "snaps", "snap2") == 1);
	FAILS(ovs_snapshot_is_synced(ctx, "snaps", "missing"), ENOENT);
	FAILS(ovs_snapshot_list(ctx, "snaps", list, &max), ERANGE);
	CHECK(max == 3);
	CHECK(ovs_snapshot_list(ctx, "snaps", list, &max) == 2);
	CHECK(strcmp(list[0].name, "snap1") == 0 && strcmp(list[1].name, "snap2") == 0);
	CHECK(list[0].size == MIB && list[2].name == NULL && list[2].size == 0);
	ovs_snapshot_list_free(list);
	ovs_snapshot_list_free(list);
	ovs_snapshot_list_free(NULL);
	FAILS(ovs_snapshot_rollback(ctx, "snaps", "snap1"), EBUSY); /* it is open */
	CHECK(ovs_ctx_destroy(writer) == 0);
	FAILS(ovs_snapshot_rollback(ctx, "snaps", "missing"), ENOENT);
	CHECK(ovs_volume_clone(ctx, "snaps", "snap2", "clone") == 0);
	FAILS(ovs_snapshot_rollback(ctx, "snaps", "snap1"), ENOTEMPTY);
	FAILS(ovs_snapshot_remove(ctx, "snaps", "snap2"), ENOTEMPTY);
	CHECK(ovs_remove_volume(ctx, "clone") == 0);
	CHECK(ovs_snapshot_rollback(ctx, "snaps", "snap1") == 0);
	char read[3];
	ovs_ctx_t *reader = opened("snaps", O_RDONLY);
	CHECK(ovs_read(reader, read, 3, 0) == 3 && memcmp(read, "one", 3) == 0);
	CHECK(ovs_ctx_destroy(reader) == 0);
	FAILS(ovs_snapshot_remove(ctx, "snaps", "snap2"), ENOENT);
	reader = context();
	FAILS(ovs_ctx_init(reader, "snaps@snap1", O_RDWR), EROFS);
	CHECK(ovs_ctx_init(reader, "snaps@snap1", O_RDONLY) == 0);
	CHECK(ovs_read(reader, read, 3, 0) == 3 && memcmp(read, "one", 3) == 0);
	CHECK(ovs_ctx_destroy(reader) == 0);
	CHECK(ovs_snapshot_remove(ctx, "snaps", "snap1") == 0);
	CHECK(ovs_snapshot_create_ms(ctx, "snaps", "quick", 5000) == 0);
	CHECK(ovs_snapshot_create(ctx, "snaps", "later", -1) == 0);
	max = 8;
	CHECK(ovs_snapshot_list(ctx, "snaps", list, &max) == 2);
	ovs_snapshot_list_free(list);
	CHECK(ovs_snapshot_remove(ctx, "snaps", "quick") == 0 && ovs_snapshot_remove(ctx, "snaps", "later") == 0);
	CHECK(ovs_remove_volume(ctx, "snaps") == 0 && ovs_ctx_destroy(ctx) == 0);
}

/* Who has the volume open alone, and comes back to it by itself, may roll it back. */
static void rollback_by_the_holder(void)
{
	char read[5];
	ovs_ctx_t *admin = context();
	CHECK(ovs_create_volume(admin, "held", 4 * MIB) == 0);
	ovs_ctx_attr_t *attr = attributes();
	CHECK(ovs_ctx_attr_enable_ha(attr) == 0);
	ovs_ctx_t *ctx = ovs_ctx_new(attr);
	CHECK(ctx != NULL && ovs_ctx_init(ctx, "held", O_RDWR) == 0);
	ovs_buffer_t *buffer = ovs_allocate(ctx, 8192);
	CHECK(buffer != NULL);
	CHECK(ovs_write(ctx, "first", 5, 0) == 5);
	CHECK(ovs_snapshot_create(ctx, "held", "s", 10) == 0);
	CHECK(ovs_write(ctx, "later", 5, 0) == 5);

	ovs_ctx_t *reader = opened("held", O_RDONLY);
	FAILS(ovs_snapshot_rollback(ctx, "held", "s"), EBUSY);
	CHECK(ovs_ctx_destroy(reader) == 0);

	CHECK(ovs_snapshot_rollback(ctx, "held", "s") == 0);
	CHECK(ovs_read(ctx, read, 5, 0) == 5 && memcmp(read, "first", 5) == 0);
	memset(ovs_buffer_data(buffer), 'x', 8192); /* what was allocated before is as good as ever */
	CHECK(ovs_write(ctx, ovs_buffer_data(buffer), 8192, 8192) == 8192);
	ovs_ctx_t *second = context();
	FAILS(ovs_ctx_init(second, "held", O_RDWR), EBUSY); /* the lease stayed */
	CHECK(ovs_ctx_destroy(second) == 0);
	CHECK(ovs_deallocate(ctx, buffer) == 0);
	CHECK(ovs_ctx_destroy(ctx) == 0 && ovs_ctx_attr_destroy(attr) == 0);
	CHECK(ovs_snapshot_remove(admin, "held", "s") == 0);
	CHECK(ovs_remove_volume(admin, "held") == 0 && ovs_ctx_destroy(admin) == 0);
}

/* Control from elsewhere; the test that has a target for that is control_over_tls. */
static void control_elsewhere(void)
{
	ovs_ctx_attr_t *attr = attributes();
	FAILS(ovs_ctx_attr_set_control(NULL, NULL, NULL, NULL), EINVAL);
	FAILS(ovs_ctx_attr_set_control(attr, "https://127.0.0.1:1", NULL, NULL), EINVAL);
	FAILS(ovs_ctx_attr_set_control(attr, "http://127.0.0.1:1", "/none", "/none"), EINVAL);
	FAILS(ovs_ctx_attr_set_control(attr, "https://127.0.0.1:1", "/none", "/none"), EINVAL);
	CHECK(ovs_ctx_attr_set_control(attr, "/no/such/control.sock", NULL, NULL) == 0);
	ovs_ctx_t *ctx = ovs_ctx_new(attr);
	CHECK(ctx != NULL);
	FAILS(ovs_create_volume(ctx, "v", MIB), EIO);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	CHECK(ovs_ctx_attr_set_control(attr, NULL, NULL, NULL) == 0);
	CHECK(ovs_ctx_attr_destroy(attr) == 0);
}

static void write_flush_read(void)
{
	ovs_ctx_t *admin = context();
	CHECK(ovs_create_volume(admin, "flush", MIB) == 0);
	ovs_ctx_t *ctx = opened("flush", O_RDWR);
	char read[6];
	CHECK(ovs_write(ctx, "stable", 6, 512) == 6 && ovs_flush(ctx) == 0);
	CHECK(ovs_read(ctx, read, 6, 512) == 6 && memcmp(read, "stable", 6) == 0);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	ctx = opened("flush", O_RDONLY);
	FAILS(ovs_write(ctx, "x", 1, 0), EBADF);
	FAILS(ovs_flush(ctx), EBADF);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	ctx = opened("flush", O_WRONLY);
	FAILS(ovs_read(ctx, read, 1, 0), EBADF);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	CHECK(ovs_remove_volume(admin, "flush") == 0 && ovs_ctx_destroy(admin) == 0);
}

static void truncate_volume(void)
{
	struct stat found;
	ovs_ctx_t *admin = context();
	CHECK(ovs_create_volume(admin, "grow", MIB) == 0);
	CHECK(ovs_truncate_volume(admin, "grow", 2 * MIB) == 0);
	ovs_ctx_t *ctx = opened("grow", O_RDWR);
	CHECK(ovs_stat(ctx, &found) == 0 && found.st_size == 2 * MIB);
	CHECK(ovs_truncate(ctx, 4 * MIB) == 0);
	CHECK(ovs_stat(ctx, &found) == 0 && found.st_size == 4 * MIB);
	CHECK(ovs_write(ctx, "end", 3, 4 * MIB - 3) == 3);
	FAILS(ovs_truncate_volume(admin, "missing", MIB), ENOENT);
	FAILS(ovs_truncate_volume(admin, "grow", MIB), EPERM); /* fail_shrink_volume */
	FAILS(ovs_truncate(ctx, MIB), EPERM);
	FAILS(ovs_truncate(ctx, 64 * TIB + 512), EFBIG); /* fail_grow_volume_beyond_limit */
	FAILS(ovs_truncate_volume(admin, "grow", 65 * TIB), EFBIG);
	FAILS(ovs_create_volume(admin, "huge", 64 * TIB + 512), EFBIG);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	ctx = opened("grow", O_RDONLY);
	FAILS(ovs_truncate(ctx, 8 * MIB), EBADF); /* fail_to_truncate_volume */
	CHECK(ovs_ctx_destroy(ctx) == 0);
	CHECK(ovs_remove_volume(admin, "grow") == 0 && ovs_ctx_destroy(admin) == 0);
}

static void write_beyond_volume_boundaries(void)
{
	char data[1024] = { 1 };
	ovs_ctx_t *admin = context();
	CHECK(ovs_create_volume(admin, "bounds", MIB) == 0);
	ovs_ctx_t *ctx = opened("bounds", O_RDWR);
	FAILS(ovs_write(ctx, data, 1, MIB), EFBIG);
	FAILS(ovs_write(ctx, data, sizeof data, MIB - 512), EFBIG);
	CHECK(ovs_write(ctx, data, 512, MIB - 512) == 512);
	CHECK(ovs_read(ctx, data, sizeof data, MIB - 512) == 512);
	CHECK(ovs_read(ctx, data, sizeof data, MIB) == 0);
	CHECK(ovs_read(ctx, data, sizeof data, 5 * MIB) == 0);
	FAILS(ovs_write(ctx, data, 0, 0), EINVAL);
	FAILS(ovs_read(ctx, data, 1, -1), EINVAL);
	FAILS(ovs_write(ctx, data, 1, INT64_MAX), EFBIG);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	CHECK(ovs_remove_volume(admin, "bounds") == 0 && ovs_ctx_destroy(admin) == 0);
}

/* Calls without a control block, by their completions. */
static ssize_t awaited(ovs_completion_t *completion, int begun)
{
	CHECK(begun == 0);
	CHECK(ovs_aio_wait_completion(completion, NULL) == 0);
	ssize_t returned = ovs_aio_return_completion(completion);
	CHECK(ovs_aio_release_completion(completion) == 0);
	return returned;
}

static void vectors_by_callback(ovs_ctx_t *ctx)
{
	struct called called = { 0 };
	char one[4096], two[8192], in[12288];
	memset(one, 3, sizeof one);
	memset(two, 4, sizeof two);
	struct iovec out[] = { { one, sizeof one }, { two, sizeof two } };
	struct iovec back[] = { { in, 1000 }, { in + 1000, sizeof in - 1000 } };
	ovs_completion_t *done = ovs_aio_create_completion(on_end, &called);
	CHECK(awaited(done, ovs_aio_writevcb(ctx, out, 2, 65536, done)) == sizeof in);
	done = ovs_aio_create_completion(on_end, &called);
	CHECK(awaited(done, ovs_aio_readvcb(ctx, back, 2, 65536, done)) == sizeof in);
	CHECK(in[0] == 3 && in[4095] == 3 && in[4096] == 4 && in[12287] == 4);
	ovs_extent_t extents[4];
	CHECK(ovs_block_status(ctx, 0, MIB, extents, 4) == 3);
	CHECK(!extents[0].data && extents[0].nbytes == 65536 && extents[1].data && extents[1].nbytes == sizeof in);
	CHECK(!extents[2].data && extents[2].nbytes == MIB - 65536 - sizeof in);
	CHECK(ovs_block_status(ctx, 65536 + 4096, 512, extents, 4) == 1 && extents[0].data && extents[0].nbytes == 512);
	FAILS(ovs_block_status(ctx, MIB, 512, extents, 4), EINVAL);
	FAILS(ovs_block_status(ctx, 0, 512, extents, 0), EINVAL);
	done = ovs_aio_create_completion(on_end, &called);
	CHECK(awaited(done, ovs_aio_discardcb(ctx, 65536, 4096, done)) == 0);
	done = ovs_aio_create_completion(on_end, &called);
	CHECK(awaited(done, ovs_aio_write_zeroescb(ctx, 65536 + 4096, 8192, done)) == 0);
	CHECK(ovs_readv(ctx, back, 2, 65536) == sizeof in && in[0] == 0 && in[4096] == 0 && in[12287] == 0);
	CHECK(ovs_block_status(ctx, 0, MIB, extents, 4) == 1 && !extents[0].data && extents[0].nbytes == MIB);
	CHECK(called.count == 4);
	done = ovs_aio_create_completion(on_end, &called);
	FAILS(ovs_aio_discardcb(ctx, 1, 512, done), EINVAL);
	FAILS(ovs_aio_writevcb(ctx, out, 2, MIB - 512, done), EFBIG);
	FAILS(ovs_aio_readvcb(ctx, NULL, 1, 0, done), EINVAL);
	CHECK(ovs_aio_release_completion(done) == 0 && called.count == 4);
	CHECK(ovs_block_bytes(ctx) == 512);
}

static void additions(void)
{
	char one[700], two[300], in[1000];
	memset(one, 1, sizeof one);
	memset(two, 2, sizeof two);
	struct iovec out[] = { { one, sizeof one }, { NULL, 0 }, { two, sizeof two } };
	struct iovec back[] = { { in, 10 }, { in + 10, 990 } };
	ovs_ctx_t *admin = context();
	CHECK(ovs_create_volume(admin, "more", MIB) == 0);
	ovs_ctx_t *ctx = opened("more", O_RDWR);
	CHECK(ovs_writev(ctx, out, 3, 100) == 1000);
	CHECK(ovs_readv(ctx, back, 2, 100) == 1000);
	CHECK(in[0] == 1 && in[699] == 1 && in[700] == 2 && in[999] == 2);
	CHECK(ovs_readv(ctx, back, 2, MIB - 500) == 500);
	FAILS(ovs_readv(ctx, back, 0, 0), EINVAL);
	FAILS(ovs_writev(ctx, NULL, 1, 0), EINVAL);
	CHECK(ovs_write_zeroes(ctx, 0, 512) == 0);
	CHECK(ovs_read(ctx, in, 1000, 0) == 1000 && in[511] == 0 && in[512] == 1);
	CHECK(ovs_discard(ctx, 0, 4096) == 0);
	CHECK(ovs_read(ctx, in, 1000, 0) == 1000 && in[600] == 0);
	FAILS(ovs_discard(ctx, 1, 512), EINVAL);
	FAILS(ovs_write_zeroes(ctx, 0, 2 * MIB), EFBIG);
	vectors_by_callback(ctx);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	CHECK(ovs_remove_volume(admin, "more") == 0 && ovs_ctx_destroy(admin) == 0);
}

static void bad_input(void)
{
	char long_name[302], byte = 0;
	struct ovs_aiocb aiocb = { &byte, 0, 1, NULL };
	memset(long_name, 'n', sizeof long_name);
	long_name[301] = 0;
	ovs_ctx_t *ctx = context();
	NONE(ovs_ctx_new(NULL), EINVAL);
	FAILS(ovs_ctx_attr_destroy(NULL), EINVAL);
	FAILS(ovs_ctx_attr_set_transport(NULL, "shm", NULL, 0), EINVAL);
	FAILS(ovs_ctx_init(NULL, "v", O_RDWR), EINVAL);
	FAILS(ovs_ctx_init(ctx, NULL, O_RDWR), EINVAL);
	FAILS(ovs_ctx_init(ctx, "", O_RDWR), EINVAL);
	FAILS(ovs_ctx_init(ctx, "a:b", O_RDWR), EINVAL);
	FAILS(ovs_ctx_init(ctx, long_name, O_RDWR), EINVAL);
	FAILS(ovs_ctx_init(ctx, "v", O_RDWR | O_CREAT), EINVAL);
	FAILS(ovs_create_volume(ctx, long_name, MIB), EINVAL);
	FAILS(ovs_create_volume(ctx, "a:b", MIB), EINVAL);
	long_name[201] = 0; /* one over what a name may have */
	FAILS(ovs_create_volume(ctx, long_name, MIB), EINVAL);
	long_name[200] = 0;
	CHECK(ovs_create_volume(ctx, long_name, MIB) == 0);
	ovs_ctx_t *longest = opened(long_name, O_RDWR);
	CHECK(ovs_write(longest, "x", 1, 0) == 1 && ovs_ctx_destroy(longest) == 0);
	CHECK(ovs_remove_volume(ctx, long_name) == 0);
	FAILS(ovs_create_volume(NULL, "v", MIB), EINVAL);
	FAILS(ovs_remove_volume(ctx, NULL), EINVAL);
	FAILS(ovs_snapshot_create(ctx, "v", "a/b", 0), EINVAL);
	FAILS(ovs_snapshot_create(ctx, "v", NULL, 0), EINVAL);
	FAILS(ovs_snapshot_list(ctx, "v", NULL, NULL), EINVAL);
	FAILS(ovs_read(ctx, &byte, 1, 0), EINVAL); /* no ovs_ctx_init */
	FAILS(ovs_read(NULL, &byte, 1, 0), EINVAL);
	FAILS(ovs_aio_read(ctx, &aiocb), EINVAL);
	FAILS(ovs_aio_finish(ctx, &aiocb), EINVAL);
	FAILS(ovs_aio_error(ctx, NULL), EINVAL);
	FAILS(ovs_aio_cancel(ctx, &aiocb), ENOSYS);
	NONE(ovs_allocate(ctx, 0), EINVAL);
	NONE(ovs_allocate(NULL, 1), EINVAL);
	NONE(ovs_buffer_data(NULL), EINVAL);
	FAILS(ovs_deallocate(ctx, NULL), EFAULT);
	FAILS(ovs_aio_wait_completion(NULL, NULL), EINVAL);
	FAILS(ovs_aio_release_completion(NULL), EINVAL);
	CHECK(strlen(ovs_last_error()) > 0);

	CHECK(ovs_create_volume(ctx, "bad", MIB) == 0);
	CHECK(ovs_ctx_init(ctx, "bad", O_RDWR) == 0);
	FAILS(ovs_write(ctx, NULL, 1, 0), EINVAL);
	FAILS(ovs_aio_readcb(ctx, &aiocb, NULL), EINVAL);
	if (is_shm())
		NONE(ovs_allocate(ctx, 1ULL << 40), ENOMEM);
	CHECK(ovs_aio_write(ctx, &aiocb) == 0 && ovs_aio_suspend(ctx, &aiocb, NULL) == 0);
	CHECK(ovs_aio_return(ctx, &aiocb) == 1 && ovs_aio_finish(ctx, &aiocb) == 0);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	FAILS(ovs_ctx_destroy(ctx), EINVAL);
	FAILS(ovs_ctx_destroy(NULL), EINVAL);
	ovs_ctx_attr_t *attr = attributes();
	CHECK(ovs_ctx_attr_destroy(attr) == 0);
	FAILS(ovs_ctx_attr_destroy(attr), EINVAL);
	ctx = context();
	CHECK(ovs_remove_volume(ctx, "bad") == 0 && ovs_ctx_destroy(ctx) == 0);
}

struct load {
	ovs_ctx_t *ctx;
	unsigned seed;
	int writes;
	long done;
	time_t until;
};

/* 1,024 requests at once, again and again; each reads what this thread wrote there, or nothing. */
static void *load(void *arg)
{
	enum { DEPTH = 1024, BLOCK = 4096 };
	struct load *load = arg;
	static __thread struct ovs_aiocb aiocbs[DEPTH];
	char *memory = malloc((size_t)DEPTH * BLOCK);
	while (time(NULL) < load->until) {
		for (int n = 0; n < DEPTH; n++) {
			off_t at = (off_t)(rand_r(&load->seed) % 2048) * BLOCK;
			aiocbs[n] = (struct ovs_aiocb){ memory + (size_t)n * BLOCK, at, BLOCK, NULL };
			if (load->writes)
				memset(aiocbs[n].aio_buf, (int)(at / BLOCK % 255) + 1, BLOCK);
			CHECK((load->writes ? ovs_aio_write : ovs_aio_read)(load->ctx, &aiocbs[n]) == 0);
		}
		for (int n = 0; n < DEPTH; n++) {
			CHECK(ovs_aio_suspend(load->ctx, &aiocbs[n], NULL) == 0);
			CHECK(ovs_aio_error(load->ctx, &aiocbs[n]) == 0);
			CHECK(ovs_aio_return(load->ctx, &aiocbs[n]) == BLOCK);
			CHECK(ovs_aio_finish(load->ctx, &aiocbs[n]) == 0);
			unsigned char *bytes = aiocbs[n].aio_buf;
			unsigned char wanted = (unsigned char)(aiocbs[n].aio_offset / BLOCK % 255 + 1);
			CHECK((bytes[0] == wanted || bytes[0] == 0) && memcmp(bytes, bytes + 1, BLOCK - 1) == 0);
			load->done++;
		}
	}
	free(memory);
	return NULL;
}

/* Two readers of one context, and a writer, at depth 1,024; with high availability too. */
static void stress(void)
{
	const char *seconds = getenv("STRESS_SECONDS");
	ovs_ctx_t *admin = context();
	CHECK(ovs_create_volume(admin, "stress", 8 * MIB) == 0);
	for (int ha = 0; ha < 2; ha++) {
		ovs_ctx_attr_t *attr = attributes();
		CHECK(ovs_ctx_attr_set_network_qdepth(attr, 256) == 0);
		if (ha)
			CHECK(ovs_ctx_attr_enable_ha(attr) == 0);
		ovs_ctx_t *ctx = ovs_ctx_new(attr);
		CHECK(ctx != NULL && ovs_ctx_init(ctx, "stress", O_RDWR) == 0);
		struct load loads[3];
		pthread_t threads[3];
		for (int n = 0; n < 3; n++) {
			loads[n] = (struct load){ ctx, (unsigned)n + 1, n == 2, 0, time(NULL) + (seconds ? atoi(seconds) : 2) };
			CHECK(pthread_create(&threads[n], NULL, load, &loads[n]) == 0);
		}
		for (int n = 0; n < 3; n++)
			CHECK(pthread_join(threads[n], NULL) == 0 && loads[n].done > 0);
		CHECK(ovs_ctx_destroy(ctx) == 0 && ovs_ctx_attr_destroy(attr) == 0);
	}
	CHECK(ovs_remove_volume(admin, "stress") == 0 && ovs_ctx_destroy(admin) == 0);
}

/* A context stays with the process that made it. */
static void fork_of_a_program(void)
{
	ovs_ctx_t *admin = context();
	CHECK(ovs_create_volume(admin, "fork", MIB) == 0);
	ovs_ctx_t *ctx = opened("fork", O_RDWR);
	pid_t child = fork();
	if (child == 0) {
		char byte;
		int right = ovs_read(ctx, &byte, 1, 0) == -1 && errno == ESHUTDOWN && ovs_ctx_destroy(ctx) == 0;
		_exit(right ? 0 : 1);
	}
	int ended;
	CHECK(waitpid(child, &ended, 0) == child && WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
	CHECK(ovs_write(ctx, "x", 1, 0) == 1);
	CHECK(ovs_ctx_destroy(ctx) == 0);
	CHECK(ovs_remove_volume(admin, "fork") == 0 && ovs_ctx_destroy(admin) == 0);
}

#define BEHAVIOUR(name) { #name, name }
static const struct {
	const char *name;
	void (*run)(void);
} behaviours[] = {
	BEHAVIOUR(create_destroy_context),
	BEHAVIOUR(uri),
	BEHAVIOUR(connect_to_nonexistent_port),
	BEHAVIOUR(list_of_uris),
	BEHAVIOUR(non_existent_volume),
	BEHAVIOUR(remove_non_existent_volume),
	BEHAVIOUR(already_created_volume),
	BEHAVIOUR(open_same_volume_twice),
	BEHAVIOUR(create_write_read_destroy),
	BEHAVIOUR(any_bytes),
	BEHAVIOUR(completion),
	BEHAVIOUR(completion_two_ctxs),
	BEHAVIOUR(stat_of_a_volume),
	BEHAVIOUR(list_volumes),
	BEHAVIOUR(create_rollback_list_remove_snapshot),
	BEHAVIOUR(rollback_by_the_holder),
	BEHAVIOUR(control_elsewhere),
	BEHAVIOUR(write_flush_read),
	BEHAVIOUR(truncate_volume),
	BEHAVIOUR(write_beyond_volume_boundaries),
	BEHAVIOUR(additions),
	BEHAVIOUR(bad_input),
	BEHAVIOUR(stress),
	BEHAVIOUR(fork_of_a_program),
};

int main(int argc, char **argv)
{
	CHECK(argc >= 4);
	transport = argv[1];
	host = argv[2];
	port = atoi(argv[3]);
	int ran = 0;
	for (size_t n = 0; n < sizeof behaviours / sizeof *behaviours; n++) {
		int chosen = argc == 4;
		for (int arg = 4; arg < argc; arg++)
			chosen |= strcmp(argv[arg], behaviours[n].name) == 0;
		if (!chosen)
			continue;
		fprintf(stderr, "%s\n", behaviours[n].name);
		behaviours[n].run();
		ran++;
	}
	CHECK(ran > 0);
	printf("%d behaviours\n", ran);
	return 0;
}
