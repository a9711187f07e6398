/* Control of a target on another machine: elsewhere TRANSPORT HOST PORT URL AUTHORITY TOKEN WRONG-AUTHORITY. */
#include "check.h"

const char *transport, *host;
int port;

int main(int argc, char **argv)
{
	char names[256], read[3];
	size_t size = sizeof names;
	CHECK(argc == 8);
	transport = argv[1];
	host = argv[2];
	port = atoi(argv[3]);

	/* No target is to be found on this machine. */
	ovs_ctx_t *near = context();
	FAILS(ovs_create_volume(near, "elsewhere", 1 << 20), EIO);
	CHECK(ovs_ctx_destroy(near) == 0);

	ovs_ctx_attr_t *attr = attributes();
	CHECK(ovs_ctx_attr_set_control(attr, argv[4], argv[7], argv[6]) == 0);
	ovs_ctx_t *wrong = ovs_ctx_new(attr);
	FAILS(ovs_create_volume(wrong, "elsewhere", 1 << 20), EACCES); /* not whom we trust */
	CHECK(ovs_ctx_destroy(wrong) == 0);

	CHECK(ovs_ctx_attr_set_control(attr, argv[4], argv[5], argv[6]) == 0);
	ovs_ctx_t *ctx = ovs_ctx_new(attr);
	CHECK(ovs_create_volume(ctx, "elsewhere", 1 << 20) == 0);
	CHECK(ovs_list_volumes(ctx, names, &size) == 10 && strcmp(names, "elsewhere") == 0);
	CHECK(ovs_ctx_init(ctx, "elsewhere", O_RDWR) == 0);
	CHECK(ovs_write(ctx, "far", 3, 0) == 3 && ovs_snapshot_create(ctx, "elsewhere", "s", 10) == 0);
	CHECK(ovs_read(ctx, read, 3, 0) == 3 && memcmp(read, "far", 3) == 0);
	CHECK(ovs_ctx_destroy(ctx) == 0);

	/* The environment stands in for the files. */
	CHECK(setenv("RINGWAY_CONTROL_CA", argv[5], 1) == 0 && setenv("RINGWAY_CONTROL_TOKEN_FILE", argv[6], 1) == 0);
	CHECK(ovs_ctx_attr_set_control(attr, argv[4], NULL, NULL) == 0);
	ctx = ovs_ctx_new(attr);
	CHECK(ovs_snapshot_is_synced(ctx, "elsewhere", "s") == 1);
	CHECK(ovs_ctx_destroy(ctx) == 0 && ovs_ctx_attr_destroy(attr) == 0);
	return 0;
}
