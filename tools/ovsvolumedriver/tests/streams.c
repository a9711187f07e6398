/*
 * Streaming, one function a row of the table that docs/edges/libovsvolumedriver.md has:
 *   streams TRANSPORT HOST PORT ROW CLONE
 * CLONE lies over a snapshot; each row leaves it as the table says.
 */
#include <pthread.h>

#include "check.h"

const char *transport, *host;
int port;

/* What a listener has heard of one clone. */
struct heard {
	const char *clone;
	int kinds[16], count, over;
	uint64_t numbers[16], jobs[16];
	ovs_stream_listener_t *listener;
	int unlisten_in_callback;
	pthread_mutex_t lock;
};

static void told(const ovs_stream_event_t *event, void *arg)
{
	struct heard *heard = arg;
	pthread_mutex_lock(&heard->lock);
	if (event->kind == OVS_STREAM_OVER)
		heard->over = event->error;
	else if (strcmp(event->volume, heard->clone) == 0 && heard->count < 16) {
		heard->kinds[heard->count] = event->kind;
		heard->jobs[heard->count] = event->job;
		heard->numbers[heard->count++] = event->number;
		if (heard->listener != NULL)
			heard->unlisten_in_callback = ovs_stream_unlisten(heard->listener) == -1 ? errno : 0;
	}
	pthread_mutex_unlock(&heard->lock);
}

/* Waits until so many were heard. */
static void await(struct heard *heard, int count)
{
	for (int n = 0; n < 3000; n++) {
		pthread_mutex_lock(&heard->lock);
		int there = heard->count;
		pthread_mutex_unlock(&heard->lock);
		if (there >= count)
			return;
		usleep(10000);
	}
	CHECK(!"so many events within 30 s");
}

/* Independent: streaming has nothing to do any more. */
static void check_independent(ovs_ctx_t *ctx, const char *clone)
{
	FAILS(ovs_stream_start(ctx, clone, 0, OVS_STREAM_REPORT, NULL), EINVAL);
}

static int is_listed(ovs_ctx_t *ctx, const char *clone)
{
	char names[4096];
	size_t size = sizeof names;
	int bytes = ovs_stream_list(ctx, names, &size), found = 0;
	CHECK(bytes >= 0);
	for (char *name = names; name < names + bytes; name += strlen(name) + 1)
		found |= strcmp(name, clone) == 0;
	return found;
}

static void step(ovs_ctx_t *ctx, const char *clone)
{
	uint64_t cursor = 0, end = 0, before;
	FAILS(ovs_stream_step(ctx, clone, NULL, &end), EINVAL);
	FAILS(ovs_stream_step(ctx, "non_existent", &cursor, &end), ENOENT);
	do {
		before = cursor;
		CHECK(ovs_stream_step(ctx, clone, &cursor, &end) == 0);
		CHECK(cursor > before && cursor <= end);
	} while (cursor != end);
	check_independent(ctx, clone);
}

static void continuous(ovs_ctx_t *ctx, const char *clone)
{
	struct heard heard = { .clone = clone, .lock = PTHREAD_MUTEX_INITIALIZER };
	uint64_t job = 0;
	FAILS(ovs_stream_start(ctx, clone, 0, 7, &job), EINVAL);
	FAILS(ovs_stream_start(ctx, "non_existent", 0, OVS_STREAM_REPORT, &job), ENOENT);
	ovs_stream_listener_t *listener = ovs_stream_listen(ctx, OVS_STREAM_FROM_NOW, told, &heard);
	CHECK(listener != NULL);
	CHECK(ovs_stream_start(ctx, clone, 0, OVS_STREAM_STOP, &job) == 0 && job > 0);
	await(&heard, 2);
	CHECK(heard.kinds[0] == OVS_STREAM_STARTED && heard.kinds[1] == OVS_STREAM_COMPLETED);
	CHECK(heard.jobs[0] == job && heard.jobs[1] == job);
	CHECK(ovs_stream_unlisten(listener) == 0);
	FAILS(ovs_stream_unlisten(listener), EINVAL);
	check_independent(ctx, clone);
}

static void abort_job(ovs_ctx_t *ctx, const char *clone)
{
	FAILS(ovs_stream_abort(ctx, clone), ENOENT);
	CHECK(ovs_stream_start(ctx, clone, 1, OVS_STREAM_REPORT, NULL) == 0);
	FAILS(ovs_stream_start(ctx, clone, 1, OVS_STREAM_REPORT, NULL), EBUSY);
	time_t begun = time(NULL);
	CHECK(ovs_stream_abort(ctx, clone) == 0);
	CHECK(time(NULL) - begun < 5);
	CHECK(!is_listed(ctx, clone));
	/* The parent stays: there is something to stream. */
	CHECK(ovs_stream_start(ctx, clone, 1, OVS_STREAM_REPORT, NULL) == 0 && ovs_stream_abort(ctx, clone) == 0);
}

static void info(ovs_ctx_t *ctx, const char *clone)
{
	ovs_stream_info_t now;
	uint64_t job, cur = 0;
	FAILS(ovs_stream_info(ctx, clone, &now), ENOENT);
	CHECK(ovs_stream_start(ctx, clone, 4 << 20, OVS_STREAM_IGNORE, &job) == 0);
	FAILS(ovs_stream_info(ctx, clone, NULL), EINVAL);
	CHECK(ovs_stream_info(ctx, clone, &now) == 0);
	CHECK(now.job == job && now.speed == 4 << 20 && now.on_error == OVS_STREAM_IGNORE && now.error[0] == 0);
	CHECK(now.status == OVS_STREAM_RUNNING && now.cur < now.end);
	FAILS(ovs_stream_resume(ctx, clone), EINVAL); /* it is not paused */
	CHECK(ovs_stream_set_speed(ctx, clone, 0) == 0);
	while (ovs_stream_info(ctx, clone, &now) == 0) {
		CHECK(now.job == job && now.speed == 0 && now.cur >= cur && now.cur <= now.end);
		cur = now.cur;
		usleep(1000);
	}
	CHECK(errno == ENOENT);
	check_independent(ctx, clone);
}

static void list(ovs_ctx_t *ctx, const char *clone)
{
	size_t none = 0;
	CHECK(!is_listed(ctx, clone));
	CHECK(ovs_stream_start(ctx, clone, 1, OVS_STREAM_REPORT, NULL) == 0);
	CHECK(is_listed(ctx, clone));
	FAILS(ovs_stream_list(ctx, NULL, &none), ERANGE);
	CHECK(none >= strlen(clone) + 1);
	FAILS(ovs_stream_list(ctx, NULL, NULL), EINVAL);
	CHECK(ovs_stream_abort(ctx, clone) == 0);
}

static void event(ovs_ctx_t *ctx, const char *clone)
{
	struct heard first = { .clone = clone, .lock = PTHREAD_MUTEX_INITIALIZER };
	struct heard again = first;
	uint64_t job;
	NONE(ovs_stream_listen(ctx, 0, NULL, NULL), EINVAL);
	NONE(ovs_stream_listen(ctx, UINT64_MAX - 1, told, &first), EINVAL);
	FAILS(ovs_stream_unlisten(NULL), EINVAL);
	ovs_stream_listener_t *listener = ovs_stream_listen(ctx, OVS_STREAM_FROM_NOW, told, &first);
	CHECK(listener != NULL);
	pthread_mutex_lock(&first.lock);
	first.listener = listener;
	pthread_mutex_unlock(&first.lock);
	CHECK(ovs_stream_start(ctx, clone, 1, OVS_STREAM_REPORT, &job) == 0);
	await(&first, 1);
	CHECK(ovs_stream_abort(ctx, clone) == 0);
	await(&first, 2);
	CHECK(first.unlisten_in_callback == EDEADLK);
	CHECK(first.kinds[0] == OVS_STREAM_STARTED && first.kinds[1] == OVS_STREAM_CANCELLED && first.jobs[1] == job);
	CHECK(ovs_stream_unlisten(listener) == 0);
	/* Who remembers the number of the first gets the second, and nothing twice. */
	listener = ovs_stream_listen(ctx, first.numbers[0], told, &again);
	CHECK(listener != NULL);
	await(&again, 1);
	CHECK(ovs_stream_start(ctx, clone, 0, OVS_STREAM_REPORT, &job) == 0);
	/* The program that runs this kills the target here and starts it again. */
	printf("running\n");
	fflush(stdout);
	CHECK(getchar() != EOF);
	await(&again, 3);
	usleep(300000);
	CHECK(again.count == 3 && again.over == 0);
	CHECK(again.numbers[0] == first.numbers[1] && again.kinds[0] == OVS_STREAM_CANCELLED);
	CHECK(again.kinds[1] == OVS_STREAM_STARTED && again.kinds[2] == OVS_STREAM_COMPLETED && again.jobs[2] == job);
	CHECK(ovs_stream_unlisten(listener) == 0);
	check_independent(ctx, clone);
}

static const struct {
	const char *name;
	void (*run)(ovs_ctx_t *ctx, const char *clone);
} rows[] = {
	{ "step", step }, { "continuous", continuous }, { "abort", abort_job }, { "info", info },
	{ "list", list }, { "event", event },
};

int main(int argc, char **argv)
{
	CHECK(argc == 6);
	transport = argv[1];
	host = argv[2];
	port = atoi(argv[3]);
	for (size_t n = 0; n < sizeof rows / sizeof *rows; n++)
		if (strcmp(rows[n].name, argv[4]) == 0) {
			ovs_ctx_t *ctx = context();
			rows[n].run(ctx, argv[5]);
			CHECK(ovs_ctx_destroy(ctx) == 0);
			return 0;
		}
	fprintf(stderr, "no row %s\n", argv[4]);
	return 1;
}
