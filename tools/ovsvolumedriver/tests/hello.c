/* hello VOLUME: writes to it, makes a snapshot, and prints what it reads back. */
#include <fcntl.h>
#include <openvstorage/volumedriver.h>
#include <stdio.h>
#include <time.h>

static int failed(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, ovs_last_error());
	return 1;
}

int main(int argc, char **argv)
{
	char name[32], back[16] = { 0 };
	if (argc != 2)
		return 2;
	ovs_ctx_attr_t *attr = ovs_ctx_attr_new();
	if (ovs_ctx_attr_set_transport(attr, "shm", NULL, 0) != 0)
		return failed("transport");
	ovs_ctx_t *ctx = ovs_ctx_new(attr);
	if (ctx == NULL || ovs_ctx_init(ctx, argv[1], O_RDWR) != 0)
		return failed("open");
	if (ovs_write(ctx, "hello, volume", 13, 4096) != 13 || ovs_flush(ctx) != 0)
		return failed("write");
	snprintf(name, sizeof name, "hello-%ld", (long)time(NULL));
	if (ovs_snapshot_create(ctx, argv[1], name, 10) != 0)
		return failed("snapshot");
	if (ovs_read(ctx, back, 13, 4096) != 13)
		return failed("read");
	printf("%s: %s\n", name, back);
	return ovs_ctx_destroy(ctx) || ovs_ctx_attr_destroy(attr);
}
