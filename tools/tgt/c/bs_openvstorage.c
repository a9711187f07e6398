/*
 * Volumes of Ringway as logical units of tgt: backing store types openvstorage, openvstorage+shm, openvstorage+tcp, openvstorage+rdma.
 *
 * This file: how a unit is opened and closed. Commands are in commands.c and work.c. Volumes are reached by libovsvolumedriver.
 *
 * Copyright 2026 the Ringway authors
 *
 * Compiled against the headers of tgt and loaded into tgtd:
 * SPDX-License-Identifier: GPL-2.0-only
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store.h"

/* Requests in flight of one unit: what an iSCSI session of tgt's may have. */
#define DEPTH		128
/* What Ringway keeps apart: who writes less makes it read first, and who unmaps less frees nothing. */
#define BLOCK_BYTES	4096

#define WHY_ROOM	256
#define say(...)	log_error("openvstorage: " __VA_ARGS__)

static struct backingstore_template templates[] = {
	{ .bs_name = "openvstorage" },
	{ .bs_name = "openvstorage+shm" },
	{ .bs_name = "openvstorage+tcp" },
	{ .bs_name = "openvstorage+rdma" },
};
static const enum transport transports[] = { TRANSPORT_SHM, TRANSPORT_SHM, TRANSPORT_TCP, TRANSPORT_RDMA };
static const char *const transport_names[] = { "shm", "tcp", "rdma" };

/* NULL where tgtd's structures are not those that we were compiled for: then nothing of them can be relied on. */
static const enum transport *transport_of(struct scsi_lu *lu)
{
	for (size_t i = 0; i < ARRAY_SIZE(templates); i++)
		if (lu->bst == &templates[i])
			return &transports[i];
	say("this tgtd is not version 1.0.85, for which this module was built\n");
	return NULL;
}

static ovs_ctx_t *context_new(enum transport transport, const struct place *place, bool high_availability)
{
	ovs_ctx_t *ctx = NULL;
	ovs_ctx_attr_t *attr = ovs_ctx_attr_new();

	if (!attr || ovs_ctx_attr_set_transport(attr, transport_names[transport], place->host, place->port) ||
	    ovs_ctx_attr_set_network_qdepth(attr, DEPTH) || (high_availability && ovs_ctx_attr_enable_ha(attr)))
		say("%s\n", ovs_last_error());
	else if (!(ctx = ovs_ctx_new(attr)))
		say("%s\n", ovs_last_error());
	ovs_ctx_attr_destroy(attr);
	return ctx;
}

/* Opens the volume; a snapshot is only read. */
static int context_open(struct unit *unit, const struct place *place, uint64_t *size)
{
	struct stat found;

	unit->read_only = false;
	if (ovs_ctx_init(unit->ctx, place->volume, O_RDWR)) {
		if (errno != EROFS || ovs_ctx_init(unit->ctx, place->volume, O_RDONLY)) {
			say("volume %s: %s\n", place->volume, ovs_last_error());
			return -1;
		}
		unit->read_only = true;
	}
	if (ovs_stat(unit->ctx, &found)) {
		say("volume %s: %s\n", place->volume, ovs_last_error());
		return -1;
	}
	*size = found.st_size;
	return 0;
}

/* A thread that leaves signals to tgtd, which waits for them by a descriptor. */
static int worker_start(struct unit *unit)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&unit->worker, NULL, unit_work, unit);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error)
		say("no thread: %s\n", strerror(error));
	return error ? -1 : 0;
}

/* What the initiator is told about the volume beside its size. */
static void describe(struct unit *unit)
{
	struct scsi_lu *lu = unit->lu;
	struct vpd *limits = lu->attrs.lu_vpd[PCODE_OFFSET(0xb0)], *provisioning = lu->attrs.lu_vpd[PCODE_OFFSET(0xb2)];
	struct service_action *capacity;

	if (!lu->attrs.no_auto_lbppbe)
		update_lbppbe(lu, BLOCK_BYTES);
	lu->attrs.thinprovisioning = 1;
	if (unit->read_only)
		lu->attrs.readonly = 1;
	if (limits && limits->vpd_update) {
		limits->vpd_update(lu, NULL);
		put_unaligned_be32(UNMAP_RANGES_MAX, limits->data + 20);
		/* Optimal granularity of UNMAP in blocks, and that its alignment, 0, is valid. */
		put_unaligned_be32(BLOCK_BYTES >> lu->blk_shift, limits->data + 24);
		put_unaligned_be32(0x80000000u, limits->data + 28);
	}
	if (provisioning && provisioning->vpd_update)
		provisioning->vpd_update(lu, NULL);
	/*
	 * The table of operations is the unit's own copy. tgt can do COMPARE AND WRITE and leaves it out of its table; it answers GET LBA
	 * STATUS by seeking in a file.
	 */
	lu->dev_type_template.ops[COMPARE_AND_WRITE] = lu->dev_type_template.ops[WRITE_16];
	capacity = find_service_action(lu->dev_type_template.ops[SERVICE_ACTION_IN].service_actions, SAI_READ_CAPACITY_16);
	if (capacity && capacity != &unit->actions[0]) {
		unit->actions[0] = *capacity;
		unit->actions[1] = (struct service_action){ SAI_GET_LBA_STATUS, unit_lba_status };
		unit->actions[2] = (struct service_action){ 0, NULL };
		lu->dev_type_template.ops[SERVICE_ACTION_IN].service_actions = unit->actions;
	}
}

static int unit_open(struct scsi_lu *lu, char *path, int *fd, uint64_t *size)
{
	struct unit *unit = unit_of(lu);
	const enum transport *transport = transport_of(lu);
	struct place place;
	bool high_availability = unit->high_availability;
	char why[WHY_ROOM];

	if (!transport)
		return -1;
	if (lu->dev_type_template.type != TYPE_DISK) {
		say("a volume is a disk, and no device of type %d\n", lu->dev_type_template.type);
		return -1;
	}
	if (place_parse(path, *transport, &place, &high_availability, why, sizeof(why))) {
		say("-b %s: %s\n", path, why);
		return -1;
	}
	unit->stop = false;
	unit->ctx = context_new(*transport, &place, high_availability);
	if (!unit->ctx)
		goto no_context;
	if (context_open(unit, &place, size))
		goto no_volume;
	if (*size < 1ull << lu->blk_shift) {
		say("volume %s is smaller than a block\n", place.volume);
		goto no_volume;
	}
	if (posix_memalign((void **)&unit->scratch, BLOCK_BYTES, SCRATCH_BYTES))
		goto no_volume;
	unit->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (unit->bell < 0 || tgt_event_add(unit->bell, EPOLLIN, unit_on_bell, unit)) {
		say("no eventfd: %m\n");
		goto no_bell;
	}
	if (worker_start(unit))
		goto no_worker;
	describe(unit);
	*fd = unit->bell;
	unit->open = true;
	free(place.text);
	return 0;

no_worker:
	tgt_event_del(unit->bell);
no_bell:
	if (unit->bell >= 0)
		close(unit->bell);
	free(unit->scratch);
no_volume:
	ovs_ctx_destroy(unit->ctx);
	unit->ctx = NULL;
no_context:
	free(place.text);
	return -1;
}

static void unit_close(struct scsi_lu *lu)
{
	struct unit *unit = unit_of(lu);

	if (!unit->open)
		return;
	/* Another path may be given to a unit that has commands in flight. */
	unit_drain(unit);
	unit->open = false;
	pthread_mutex_lock(&unit->lock);
	unit->stop = true;
	pthread_cond_signal(&unit->more);
	pthread_mutex_unlock(&unit->lock);
	pthread_join(unit->worker, NULL);
	tgt_event_del(unit->bell);
	/* The library's thread may still ring for what has ended; it is gone after this. */
	if (ovs_ctx_destroy(unit->ctx))
		say("%s\n", ovs_last_error());
	unit->ctx = NULL;
	close(unit->bell);
	free(unit->scratch);
	if (unit->read_only)
		lu->attrs.readonly = 0;
}

static tgtadm_err unit_init(struct scsi_lu *lu, char *bsopts)
{
	struct unit *unit = unit_of(lu);
	char why[WHY_ROOM];

	memset(unit, 0, sizeof(*unit));
	unit->lu = lu;
	unit->high_availability = true;
	if (!transport_of(lu))
		return TGTADM_INVALID_REQUEST;
	if (bsopts && *bsopts && option_parse(bsopts, &unit->high_availability, why, sizeof(why))) {
		say("--bsopts: %s\n", why);
		return TGTADM_INVALID_REQUEST;
	}
	INIT_LIST_HEAD(&unit->active);
	INIT_LIST_HEAD(&unit->waiting);
	INIT_LIST_HEAD(&unit->spare);
	INIT_LIST_HEAD(&unit->work);
	INIT_LIST_HEAD(&unit->ended);
	pthread_mutex_init(&unit->lock, NULL);
	pthread_cond_init(&unit->more, NULL);
	return TGTADM_SUCCESS;
}

static void unit_exit(struct scsi_lu *lu)
{
	struct unit *unit = unit_of(lu);
	struct request *request, *next;

	list_for_each_entry_safe(request, next, &unit->spare, place) {
		list_del(&request->place);
		free(request);
	}
	pthread_cond_destroy(&unit->more);
	pthread_mutex_destroy(&unit->lock);
}

/* What tgtd calls once it has loaded the module. */
__attribute__((visibility("default"))) void register_bs_module(void);
void register_bs_module(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(templates); i++) {
		struct backingstore_template *bst = &templates[i];

		bst->bs_datasize = sizeof(struct unit);
		bst->bs_open = unit_open;
		bst->bs_close = unit_close;
		bst->bs_init = unit_init;
		bst->bs_exit = unit_exit;
		bst->bs_cmd_submit = unit_submit;
		bs_create_opcode_map(bst, (unsigned char *)unit_opcodes, unit_opcodes_count);
		register_backingstore_template(bst);
	}
}
