/*
 * A target that goes away, and comes back: away TRANSPORT HOST PORT CASE. The test that runs this reads what it says, does what the
 * case is about, and says go.
 */
#include <pthread.h>

#include "check.h"

enum { BLOCK = 4096, DEPTH = 64 };

const char *transport, *host;
int port;

static struct ovs_aiocb aiocbs[DEPTH];
static char memory[DEPTH][BLOCK];

/* Requests in flight when the target goes end with ESHUTDOWN; so does each call afterwards. */
static void unmount_while_doing_io(void)
{
	ovs_ctx_t *ctx = opened("away", O_RDWR), *others[16];
	int count = is_shm() ? 4 : 16;
	for (int n = 0; n < count; n++)
		others[n] = opened("away", O_RDONLY); /* unmount_while_having_many_open_connections */
	tell("running");
	int failed = 0;
	time_t until = time(NULL) + 60;
	while (!failed && time(NULL) < until) {
		for (int n = 0; n < DEPTH; n++) {
			aiocbs[n] = (struct ovs_aiocb){ memory[n], n * BLOCK, BLOCK, NULL };
			CHECK((n % 2 ? ovs_aio_write : ovs_aio_read)(ctx, &aiocbs[n]) == 0);
		}
		for (int n = 0; n < DEPTH; n++) {
			CHECK(ovs_aio_suspend(ctx, &aiocbs[n], NULL) == 0);
			int error = ovs_aio_error(ctx, &aiocbs[n]);
			CHECK(error == 0 || error == ESHUTDOWN);
			failed |= error != 0;
			CHECK(ovs_aio_finish(ctx, &aiocbs[n]) == 0);
		}
	}
	CHECK(failed);
	char byte = 0;
	struct ovs_aiocb one = { &byte, 0, 1, NULL };
	FAILS(ovs_read(ctx, &byte, 1, 0), ESHUTDOWN);
	FAILS(ovs_write(ctx, &byte, 1, 0), ESHUTDOWN);
	FAILS(ovs_flush(ctx), ESHUTDOWN);
	FAILS(ovs_discard(ctx, 0, 4096), ESHUTDOWN);
	CHECK(ovs_aio_read(ctx, &one) == 0 && ovs_aio_suspend(ctx, &one, NULL) == 0);
	CHECK(ovs_aio_error(ctx, &one) == ESHUTDOWN && ovs_aio_finish(ctx, &one) == 0);
	FAILS(ovs_create_volume(ctx, "v", 1 << 20), EIO);
	FAILS(ovs_remove_volume(ctx, "v"), EIO);
	FAILS(ovs_truncate(ctx, 1 << 30), EIO);
	FAILS(ovs_snapshot_create(ctx, "away", "s", 1), EIO);
	FAILS(ovs_snapshot_rollback(ctx, "away", "s"), EIO);
	FAILS(ovs_snapshot_remove(ctx, "away", "s"), EIO);
	FAILS(ovs_snapshot_is_synced(ctx, "away", "s"), EIO);
	size_t size = 10;
	int max = 10;
	ovs_snapshot_info_t list[10];
	FAILS(ovs_list_volumes(ctx, &byte, &size), EIO);
	FAILS(ovs_snapshot_list(ctx, "away", list, &max), EIO);
	ovs_ctx_attr_t *attr = attributes();
	ovs_ctx_t *late = ovs_ctx_new(attr);
	if (is_shm())
		CHECK(late != NULL && ovs_ctx_init(late, "away", O_RDWR) == -1 && ovs_ctx_destroy(late) == 0);
	else
		/* Reset: the port is free, and another program of this machine may have been given it, which hangs up. */
		CHECK(late == NULL && (errno == ECONNREFUSED || errno == ECONNRESET));
	for (int n = 0; n < count; n++)
		CHECK(ovs_ctx_destroy(others[n]) == 0);
	CHECK(ovs_ctx_destroy(ctx) == 0 && ovs_ctx_attr_destroy(attr) == 0);
}

/* With high availability a target that is killed and comes back costs no error, and nothing that was acknowledged. */
static void high_availability(void)
{
	ovs_ctx_attr_t *attr = attributes();
	CHECK(ovs_ctx_attr_enable_ha(attr) == 0);
	ovs_ctx_t *ctx = ovs_ctx_new(attr);
	CHECK(ctx != NULL && ovs_ctx_init(ctx, "away", O_RDWR) == 0);
	tell("running");
	time_t until = time(NULL) + 12;
	unsigned round = 0;
	while (time(NULL) < until) {
		round++;
		for (int n = 0; n < DEPTH; n++) {
			memset(memory[n], (int)(round + n) % 256, BLOCK);
			aiocbs[n] = (struct ovs_aiocb){ memory[n], n * BLOCK, BLOCK, NULL };
			CHECK(ovs_aio_write(ctx, &aiocbs[n]) == 0);
		}
		for (int n = 0; n < DEPTH; n++) {
			CHECK(ovs_aio_suspend(ctx, &aiocbs[n], NULL) == 0);
			CHECK(ovs_aio_return(ctx, &aiocbs[n]) == BLOCK && ovs_aio_finish(ctx, &aiocbs[n]) == 0);
		}
		for (int n = 0; n < DEPTH; n++) {
			char read[BLOCK];
			CHECK(ovs_read(ctx, read, BLOCK, n * BLOCK) == BLOCK && memcmp(read, memory[n], BLOCK) == 0);
		}
	}
	CHECK(round > 1 && ovs_ctx_destroy(ctx) == 0 && ovs_ctx_attr_destroy(attr) == 0);
}

/* The one writer, stopped while another is it; the target was killed before and after. It does not get the volume back: its writes are older. */
static void passed_over(void)
{
	ovs_ctx_attr_t *attr = attributes();
	CHECK(ovs_ctx_attr_enable_ha(attr) == 0);
	ovs_ctx_t *ctx = ovs_ctx_new(attr);
	CHECK(ctx != NULL && ovs_ctx_init(ctx, "away", O_RDWR) == 0);
	CHECK(ovs_write(ctx, "first", 5, 0) == 5);
	tell("running");
	FAILS(ovs_write(ctx, "older", 5, 0), ESHUTDOWN);
	CHECK(ovs_ctx_destroy(ctx) == 0 && ovs_ctx_attr_destroy(attr) == 0);
}

static void successor(void)
{
	ovs_ctx_t *ctx = opened("away", O_RDWR);
	CHECK(ovs_write(ctx, "newer", 5, 0) == 5 && ovs_flush(ctx) == 0);
	CHECK(ovs_ctx_destroy(ctx) == 0);
}

static void check_successor(void)
{
	char read[5];
	ovs_ctx_t *ctx = opened("away", O_RDONLY);
	CHECK(ovs_read(ctx, read, 5, 0) == 5 && memcmp(read, "newer", 5) == 0);
	CHECK(ovs_ctx_destroy(ctx) == 0);
}

/* Somebody else listens there: HOST PORT is the test's. */
static void not_a_target(void)
{
	ovs_ctx_attr_t *attr = attributes();
	CHECK((errno = 0, ovs_ctx_new(attr)) == NULL);
	CHECK(errno == EIO || errno == ETIMEDOUT || errno == ECONNRESET);
	CHECK(ovs_ctx_attr_destroy(attr) == 0);
}

int main(int argc, char **argv)
{
	CHECK(argc == 5);
	transport = argv[1];
	host = argv[2];
	port = atoi(argv[3]);
	if (strcmp(argv[4], "unmount_while_doing_io") == 0)
		unmount_while_doing_io();
	else if (strcmp(argv[4], "high_availability") == 0)
		high_availability();
	else if (strcmp(argv[4], "not_a_target") == 0)
		not_a_target();
	else if (strcmp(argv[4], "passed_over") == 0)
		passed_over();
	else if (strcmp(argv[4], "successor") == 0)
		successor();
	else if (strcmp(argv[4], "check_successor") == 0)
		check_successor();
	else
		CHECK(!"a case that there is");
	printf("done\n");
	return 0;
}
