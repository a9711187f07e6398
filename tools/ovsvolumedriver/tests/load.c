/*
 * load polled|callback VOLUME DEPTH SECONDS: 4 KiB random reads over shared memory, as many at a time as DEPTH. Prints how many a second,
 * and the CPU time of one, all threads together.
 */
#include <fcntl.h>
#include <openvstorage/volumedriver.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <errno.h>

enum { BLOCK = 4096, DEPTH_MAX = 256 };

struct request {
	struct ovs_aiocb aiocb;
	ovs_completion_t *completion;
};

static ovs_ctx_t *ctx;
static struct request requests[DEPTH_MAX];
static uint64_t blocks, seed = 88172645463325252ULL, done;
static volatile int stopping, running;

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, ovs_last_error());
	exit(1);
}

static off_t somewhere(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (off_t)(seed % blocks) * BLOCK;
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static double cpu(void)
{
	struct rusage used;
	getrusage(RUSAGE_SELF, &used);
	return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
	       (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

/* Takes what a request came to, after which it may be used again. */
static void take(struct request *request)
{
	if (ovs_aio_return(ctx, &request->aiocb) != BLOCK)
		fail("read");
	if (ovs_aio_finish(ctx, &request->aiocb) != 0)
		fail("finish");
	done++;
}

static void start(struct request *request);

/* On the library's thread. */
static void ended(ovs_completion_t *completion, void *arg)
{
	struct request *request = arg;
	take(request);
	ovs_aio_release_completion(completion);
	if (stopping)
		__atomic_sub_fetch(&running, 1, __ATOMIC_SEQ_CST);
	else
		start(request);
}

static void start(struct request *request)
{
	request->aiocb.aio_offset = somewhere();
	request->completion = ovs_aio_create_completion(ended, request);
	if (ovs_aio_readcb(ctx, &request->aiocb, request->completion) != 0)
		fail("readcb");
}

static void callbacks(int depth, double until)
{
	running = depth;
	for (int n = 0; n < depth; n++)
		start(&requests[n]);
	while (now() < until)
		usleep(10000);
	stopping = 1;
	while (running > 0)
		usleep(1000);
}

static void polled(int depth, double until)
{
	for (int n = 0; n < depth; n++) {
		requests[n].aiocb.aio_offset = somewhere();
		if (ovs_aio_read(ctx, &requests[n].aiocb) != 0)
			fail("read");
	}
	for (int left = depth, round = 0; left > 0; round++) {
		if (round % 64 == 0 && now() >= until)
			stopping = 1;
		for (int n = 0; n < depth; n++) {
			struct ovs_aiocb *aiocb = &requests[n].aiocb;
			if (aiocb->request_ == NULL || ovs_aio_error(ctx, aiocb) == EINPROGRESS)
				continue;
			take(&requests[n]);
			if (stopping) {
				left--;
				continue;
			}
			aiocb->aio_offset = somewhere();
			if (ovs_aio_read(ctx, aiocb) != 0)
				fail("read");
		}
	}
}

int main(int argc, char **argv)
{
	struct stat stat;
	if (argc != 5)
		return 2;
	int depth = atoi(argv[3]);
	if (depth < 1 || depth > DEPTH_MAX)
		return 2;
	ovs_ctx_attr_t *attr = ovs_ctx_attr_new();
	if (ovs_ctx_attr_set_transport(attr, "shm", NULL, 0) != 0 || ovs_ctx_attr_set_network_qdepth(attr, DEPTH_MAX) != 0)
		fail("attributes");
	ctx = ovs_ctx_new(attr);
	if (ctx == NULL || ovs_ctx_init(ctx, argv[2], O_RDONLY) != 0 || ovs_stat(ctx, &stat) != 0)
		fail("open");
	blocks = (uint64_t)stat.st_size / BLOCK;
	seed ^= (uint64_t)time(NULL) * 2654435761u ^ (uint64_t)getpid();
	for (int n = 0; n < depth; n++) {
		ovs_buffer_t *buffer = ovs_allocate(ctx, BLOCK);
		if (buffer == NULL)
			fail("allocate");
		requests[n].aiocb = (struct ovs_aiocb){ ovs_buffer_data(buffer), 0, BLOCK, NULL };
	}
	double begun = now(), before = cpu();
	(strcmp(argv[1], "callback") == 0 ? callbacks : polled)(depth, begun + atof(argv[4]));
	double took = now() - begun;
	printf("{\"iops\": %.0f, \"cpu_ns\": %.1f}\n", (double)done / took, (cpu() - before) * 1e9 / (double)done);
	return 0;
}
