/* What the programs of these tests share: checks that say where and why they failed. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <fcntl.h>
#include <openvstorage/volumedriver.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what)                                                                                                  \
	do {                                                                                                         \
		if (!(what)) {                                                                                       \
			int was = errno;                                                                             \
			fprintf(stderr, "%s:%d: %s: errno %d (%s), %s\n", __FILE__, __LINE__, #what, was,             \
				strerror(was), ovs_last_error());                                                    \
			exit(1);                                                                                     \
		}                                                                                                    \
	} while (0)
/* Fails with -1 or NULL, and this errno. */
#define FAILS(call, number) CHECK((errno = 0, (long)(call) == -1) && errno == (number))
#define NONE(call, number) CHECK((errno = 0, (call) == NULL) && errno == (number))

extern const char *transport, *host;
extern int port;

static inline ovs_ctx_attr_t *attributes(void)
{
	ovs_ctx_attr_t *attr = ovs_ctx_attr_new();
	CHECK(attr != NULL);
	CHECK(ovs_ctx_attr_set_transport(attr, transport, host, port) == 0);
	return attr;
}

static inline ovs_ctx_t *context(void)
{
	ovs_ctx_attr_t *attr = attributes();
	ovs_ctx_t *ctx = ovs_ctx_new(attr);
	CHECK(ctx != NULL);
	CHECK(ovs_ctx_attr_destroy(attr) == 0);
	return ctx;
}

static inline ovs_ctx_t *opened(const char *volume, int flags)
{
	ovs_ctx_t *ctx = context();
	CHECK(ovs_ctx_init(ctx, volume, flags) == 0);
	return ctx;
}

static inline int is_shm(void)
{
	return strcmp(transport, "shm") == 0;
}

/* A moment of CLOCK_REALTIME so far from now. */
static inline struct timespec after_ms(long ms)
{
	struct timespec at;
	clock_gettime(CLOCK_REALTIME, &at);
	at.tv_sec += ms / 1000;
	at.tv_nsec += ms % 1000 * 1000000;
	if (at.tv_nsec >= 1000000000) {
		at.tv_nsec -= 1000000000;
		at.tv_sec++;
	}
	return at;
}

/* Says something to the test, and waits until it says go. */
static inline void tell(const char *what)
{
	char line[64];
	printf("%s\n", what);
	fflush(stdout);
	CHECK(fgets(line, sizeof line, stdin) != NULL);
}

#endif
