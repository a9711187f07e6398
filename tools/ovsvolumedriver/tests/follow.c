/* follow CLONE: makes a clone independent of its parent, and follows the job by its events to the end. */
#include <openvstorage/volumedriver.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

struct following {
	const char *volume;
	int last;	/* the event that ends the job; 0 until then */
	char why[256];
	pthread_mutex_t lock;
	pthread_cond_t changed;
};

static int failed(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, ovs_last_error());
	return 1;
}

/* On a thread of the library, once for each event. */
static void told(const ovs_stream_event_t *event, void *arg)
{
	struct following *following = arg;
	if (event->kind != OVS_STREAM_OVER && strcmp(event->volume, following->volume) != 0)
		return;
	pthread_mutex_lock(&following->lock);
	switch (event->kind) {
	case OVS_STREAM_COMPLETED:
	case OVS_STREAM_FAILED:
	case OVS_STREAM_CANCELLED:
	case OVS_STREAM_OVER:
		following->last = event->kind;
		snprintf(following->why, sizeof following->why, "%s", event->text);
		pthread_cond_signal(&following->changed);
	}
	pthread_mutex_unlock(&following->lock);
}

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	struct following following = { .volume = argv[1],
				       .lock = PTHREAD_MUTEX_INITIALIZER,
				       .changed = PTHREAD_COND_INITIALIZER };
	ovs_stream_info_t info;
	uint64_t job;

	ovs_ctx_attr_t *attr = ovs_ctx_attr_new();
	if (ovs_ctx_attr_set_transport(attr, "shm", NULL, 0) != 0)
		return failed("transport");
	ovs_ctx_t *ctx = ovs_ctx_new(attr);
	if (ctx == NULL)
		return failed("context");
	/* Listens before it starts: nothing is missed. */
	ovs_stream_listener_t *listener = ovs_stream_listen(ctx, OVS_STREAM_FROM_NOW, told, &following);
	if (listener == NULL)
		return failed("listen");
	if (ovs_stream_start(ctx, argv[1], 0, OVS_STREAM_REPORT, &job) != 0)
		return failed("start");

	pthread_mutex_lock(&following.lock);
	while (following.last == 0) {
		struct timespec until;
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += 1;
		pthread_cond_timedwait(&following.changed, &following.lock, &until);
		if (following.last == 0 && ovs_stream_info(ctx, argv[1], &info) == 0)
			fprintf(stderr, "job %llu: %llu of %llu\n", (unsigned long long)info.job,
				(unsigned long long)info.cur, (unsigned long long)info.end);
	}
	pthread_mutex_unlock(&following.lock);

	if (ovs_stream_unlisten(listener) != 0 || ovs_ctx_destroy(ctx) != 0 || ovs_ctx_attr_destroy(attr) != 0)
		return failed("end");
	if (following.last != OVS_STREAM_COMPLETED) {
		fprintf(stderr, "job %llu: %s\n", (unsigned long long)job, following.why);
		return 1;
	}
	printf("%s is independent\n", argv[1]);
	return 0;
}
