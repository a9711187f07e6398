/*
 * Commands: which there are, what becomes of them, and how they end.
 *
 * A read, a write and a flush are one request of the library's, which ends by a callback. What is several requests runs on the unit's
 * own thread (work.c). COMPARE AND WRITE and ORWRITE have their bytes to themselves: while one of them waits or runs, commands that
 * touch the same bytes and came later wait for it, and it for those that came before. That is as strong as it needs to be, since the
 * unit has the volume's lease of the one writer.
 *
 * Every command ends on tgtd's thread, from `unit_on_bell`; so also after tgtd has written to the command what it believes about it
 * (its UNMAP leaves sense data behind, whatever became of it).
 *
 * Copyright 2026 the Ringway authors
 * SPDX-License-Identifier: GPL-2.0-only
 */
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store.h"

const unsigned char unit_opcodes[] = {
	TEST_UNIT_READY, REQUEST_SENSE, INQUIRY, REPORT_LUNS, START_STOP, ALLOW_MEDIUM_REMOVAL, SEND_DIAGNOSTIC, FORMAT_UNIT,
	MODE_SENSE, MODE_SENSE_10, MODE_SELECT, MODE_SELECT_10, MAINT_PROTOCOL_IN,
	RESERVE, RELEASE, PERSISTENT_RESERVE_IN, PERSISTENT_RESERVE_OUT,
	READ_CAPACITY, SERVICE_ACTION_IN,
	READ_6, READ_10, READ_12, READ_16, PRE_FETCH_10, PRE_FETCH_16,
	WRITE_6, WRITE_10, WRITE_12, WRITE_16, WRITE_VERIFY, WRITE_VERIFY_12, WRITE_VERIFY_16,
	VERIFY_10, VERIFY_12, VERIFY_16, SYNCHRONIZE_CACHE, SYNCHRONIZE_CACHE_16,
	WRITE_SAME, WRITE_SAME_16, UNMAP, COMPARE_AND_WRITE, ORWRITE_16,
};
const int unit_opcodes_count = sizeof(unit_opcodes);

/* SPACE ALLOCATION FAILED WRITE PROTECT, and LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE: tgt's headers lack the first. */
#define ASC_SPACE_ALLOCATION_FAILED	0x2707
#define ASC_COMMAND_TIMEOUT_IN_TARGET	0x2e02

static bool is_write(const struct scsi_cmd *cmd)
{
	switch (cmd->scb[0]) {
	case READ_6:
	case READ_10:
	case READ_12:
	case READ_16:
	case VERIFY_10:
	case VERIFY_12:
	case VERIFY_16:
	case SERVICE_ACTION_IN:
		return false;
	default:
		return true;
	}
}

/* The status of a command that failed, with its sense data. */
static int status_of(struct scsi_cmd *cmd, const struct failure *failure)
{
	uint8_t key = HARDWARE_ERROR;
	uint16_t asc = ASC_INTERNAL_TGT_FAILURE;

	switch (failure->error) {
	case 0:
		return SAM_STAT_GOOD;
	case EPROTO:
		/* The library's, which has no sense key. */
		if (!failure->key)
			break;
		if (failure->has_info) {
			sense_data_build_with_info(cmd, failure->key, failure->asc, failure->info);
			return SAM_STAT_CHECK_CONDITION;
		}
		key = failure->key;
		asc = failure->asc;
		break;
	case EIO:
		key = MEDIUM_ERROR;
		asc = is_write(cmd) ? ASC_WRITE_ERROR : ASC_UNRECOVERED_READ;
		break;
	case ENOSPC:
		key = DATA_PROTECT;
		asc = ASC_SPACE_ALLOCATION_FAILED;
		break;
	case EROFS:
	case EPERM:
	case EBADF:
		key = DATA_PROTECT;
		asc = ASC_WRITE_PROTECT;
		break;
	case EFBIG:
		key = ILLEGAL_REQUEST;
		asc = ASC_LBA_OUT_OF_RANGE;
		break;
	case ESHUTDOWN:
	case ECONNREFUSED:
		/* The target is gone, and is not waited for any more. */
		key = NOT_READY;
		asc = ASC_CAUSE_NOT_REPORTABLE;
		break;
	case ETIMEDOUT:
		key = ABORTED_COMMAND;
		asc = ASC_COMMAND_TIMEOUT_IN_TARGET;
		break;
	case ENOMEM:
	case EAGAIN:
	case EBUSY:
		/* Nothing is wrong: later. */
		return SAM_STAT_BUSY;
	}
	sense_data_build(cmd, key, asc);
	return SAM_STAT_CHECK_CONDITION;
}

void request_ended(struct request *request)
{
	struct unit *unit = request->unit;
	uint64_t one = 1;

	pthread_mutex_lock(&unit->lock);
	list_add_tail(&request->way, &unit->ended);
	pthread_mutex_unlock(&unit->lock);
	/* Full, which is EAGAIN, is rung as well. */
	if (write(unit->bell, &one, sizeof(one)) < 0 && errno != EAGAIN)
		log_error("openvstorage: eventfd: %m\n");
}

static void on_transfer(ovs_completion_t *completion, void *argument)
{
	struct request *request = argument;
	ovs_ctx_t *ctx = request->unit->ctx;
	int error = ovs_aio_error(ctx, &request->block);

	/* A volume has what is below its size, so less is a fault of somebody's. */
	if (!error && (uint64_t)ovs_aio_return(ctx, &request->block) != request->bytes)
		error = EIO;
	ovs_aio_finish(ctx, &request->block);
	ovs_aio_release_completion(completion);
	request->failure = failed(error);
	request_ended(request);
}

static void on_flush(ovs_completion_t *completion, void *argument)
{
	struct request *request = argument;

	request->failure = failed(ovs_aio_return_completion(completion) < 0 ? errno : 0);
	ovs_aio_release_completion(completion);
	request_ended(request);
}

/* Begins the library's request of a step; after it the request is another thread's until it is in `ended`. */
static void begin(struct request *request, bool flush)
{
	ovs_ctx_t *ctx = request->unit->ctx;
	ovs_completion_t *completion;
	int error;

	completion = ovs_aio_create_completion(flush ? on_flush : on_transfer, request);
	if (completion) {
		if (flush)
			error = ovs_aio_flushcb(ctx, completion);
		else if (is_write(request->cmd))
			error = ovs_aio_writecb(ctx, &request->block, completion);
		else
			error = ovs_aio_readcb(ctx, &request->block, completion);
		if (!error)
			return;
	}
	error = errno;
	if (completion)
		ovs_aio_release_completion(completion);
	request->failure = failed(error);
	request_ended(request);
}

static void start(struct request *request)
{
	struct unit *unit = request->unit;

	list_add_tail(&request->place, &unit->active);
	switch (request->step) {
	case STEP_TRANSFER:
		begin(request, false);
		break;
	case STEP_FLUSH:
		begin(request, true);
		break;
	case STEP_WORK:
		pthread_mutex_lock(&unit->lock);
		list_add_tail(&request->way, &unit->work);
		pthread_cond_signal(&unit->more);
		pthread_mutex_unlock(&unit->lock);
		break;
	}
}

static bool conflicts(const struct request *one, const struct request *other)
{
	return (one->alone || other->alone) && one->from < other->to && other->from < one->to;
}

/* Whether a request has to wait for one that came before it. */
static bool has_to_wait(struct unit *unit, struct request *request)
{
	struct request *other;

	if (!unit->alone)
		return false;
	list_for_each_entry(other, &unit->active, place)
		if (conflicts(request, other))
			return true;
	list_for_each_entry(other, &unit->waiting, place) {
		if (other == request)
			break;
		if (conflicts(request, other))
			return true;
	}
	return false;
}

static void start_those_that_may(struct unit *unit)
{
	struct request *request, *next;

	list_for_each_entry_safe(request, next, &unit->waiting, place) {
		if (has_to_wait(unit, request))
			continue;
		list_del(&request->place);
		start(request);
	}
}

static void end(struct request *request)
{
	struct unit *unit = request->unit;
	struct scsi_cmd *cmd = request->cmd;
	struct failure failure = request->failure;

	list_del(&request->place);
	unit->alone -= request->alone;
	/* From here on another command may have it. */
	list_add(&request->place, &unit->spare);
	if (cmd->scb[0] == UNMAP) {
		cmd->sense_len = 0;
		scsi_set_out_resid(cmd, 0);
		scsi_set_out_transfer_len(cmd, scsi_get_out_length(cmd));
	} else if (cmd->scb[0] == SERVICE_ACTION_IN) {
		scsi_set_in_resid_by_actual(cmd, request->bytes);
	}
	target_cmd_io_done(cmd, status_of(cmd, &failure));
}

void unit_on_bell(int fd, int events, void *data)
{
	struct unit *unit = data;
	struct list_head ended;
	uint64_t rung;

	if (read(fd, &rung, sizeof(rung)) < 0 && errno != EAGAIN)
		log_error("openvstorage: eventfd: %m\n");
	INIT_LIST_HEAD(&ended);
	pthread_mutex_lock(&unit->lock);
	list_splice_init(&unit->ended, &ended);
	pthread_mutex_unlock(&unit->lock);
	while (!list_empty(&ended)) {
		struct request *request = list_first_entry(&ended, struct request, way);

		list_del(&request->way);
		if (!request->failure.error && request->flushed && request->step == STEP_TRANSFER) {
			request->step = STEP_FLUSH;
			begin(request, true);
		} else {
			end(request);
		}
	}
	start_those_that_may(unit);
}

void unit_drain(struct unit *unit)
{
	while (!list_empty(&unit->active) || !list_empty(&unit->waiting)) {
		struct pollfd bell = { .fd = unit->bell, .events = POLLIN };

		poll(&bell, 1, -1);
		unit_on_bell(unit->bell, EPOLLIN, unit);
	}
}

/* A write is durable when it ends: it says so, or the cache was switched off. */
static bool is_flushed(struct scsi_cmd *cmd)
{
	struct mode_pg *caching;

	if (!is_write(cmd))
		return false;
	if (cmd->scb[0] != WRITE_6 && cmd->scb[1] & 0x8)
		return true;
	caching = find_mode_page(cmd->dev, 0x08, 0);
	return caching && !(caching->mode_data[0] & 0x4);
}

static struct request *request_new(struct unit *unit, struct scsi_cmd *cmd)
{
	struct request *request;

	if (list_empty(&unit->spare)) {
		request = malloc(sizeof(*request));
		if (!request)
			return NULL;
	} else {
		request = list_first_entry(&unit->spare, struct request, place);
		list_del(&request->place);
	}
	memset(request, 0, sizeof(*request));
	request->unit = unit;
	request->cmd = cmd;
	request->from = cmd->offset;
	request->to = cmd->offset;
	request->step = STEP_WORK;
	return request;
}

static int submit(struct request *request)
{
	struct unit *unit = request->unit;

	set_cmd_async(request->cmd);
	unit->alone += request->alone;
	if (has_to_wait(unit, request))
		list_add_tail(&request->place, &unit->waiting);
	else
		start(request);
	return 0;
}

static int submit_transfer(struct request *request, void *data, uint64_t bytes)
{
	request->step = STEP_TRANSFER;
	request->bytes = bytes;
	request->to = request->from + bytes;
	request->block.aio_buf = data;
	request->block.aio_nbytes = bytes;
	request->block.aio_offset = request->from;
	return submit(request);
}

/* Bytes that the command's blocks have; 32 bits, as tgt keeps them, are too few for a WRITE SAME of all that there is. */
static uint64_t bytes_of(struct scsi_cmd *cmd)
{
	uint64_t bytes = (uint64_t)scsi_rw_count(cmd->scb) << cmd->dev->blk_shift;

	if (!bytes && (cmd->scb[0] == WRITE_SAME || cmd->scb[0] == WRITE_SAME_16))
		bytes = cmd->dev->size - cmd->offset;
	return bytes;
}

int unit_submit(struct scsi_cmd *cmd)
{
	struct unit *unit = unit_of(cmd->dev);
	struct request *request;
	uint64_t bytes = bytes_of(cmd);

	request = request_new(unit, cmd);
	if (!request)
		return -ENOMEM;
	request->flushed = is_flushed(cmd);
	switch (cmd->scb[0]) {
	case READ_6:
	case READ_10:
	case READ_12:
	case READ_16:
		/* What the initiator has room for; tgt has told it of a difference. */
		bytes = min_t(uint64_t, bytes, scsi_get_in_length(cmd));
		if (bytes)
			return submit_transfer(request, scsi_get_in_buffer(cmd), bytes);
		break;
	case WRITE_6:
	case WRITE_10:
	case WRITE_12:
	case WRITE_16:
		bytes = min_t(uint64_t, bytes, scsi_get_out_length(cmd));
		if (bytes)
			return submit_transfer(request, scsi_get_out_buffer(cmd), bytes);
		break;
	case SYNCHRONIZE_CACHE:
	case SYNCHRONIZE_CACHE_16:
		/* Also with IMMED: an answer that came before could not tell of an error. Nothing that is not written needs no flush. */
		if (unit->read_only)
			break;
		request->step = STEP_FLUSH;
		return submit(request);
	case COMPARE_AND_WRITE:
	case ORWRITE_16:
		request->alone = true;
		/* fallthrough */
	case WRITE_VERIFY:
	case WRITE_VERIFY_12:
	case WRITE_VERIFY_16:
	case VERIFY_10:
	case VERIFY_12:
	case VERIFY_16:
	case WRITE_SAME:
	case WRITE_SAME_16:
		request->bytes = bytes;
		request->to = request->from + bytes;
		return submit(request);
	case UNMAP:
		/* Its ranges are in its data; any of them may be meant. */
		request->from = 0;
		request->to = cmd->dev->size;
		return submit(request);
	case PRE_FETCH_10:
	case PRE_FETCH_16:
		break;
	default:
		set_cmd_async(cmd);
		request->failure = refused(ILLEGAL_REQUEST, ASC_INVALID_OP_CODE);
		list_add_tail(&request->place, &unit->active);
		request_ended(request);
		return 0;
	}
	/* Nothing to do. */
	list_add(&request->place, &unit->spare);
	return 0;
}

/* GET LBA STATUS: what can be said at once is; where the data is, the unit's thread asks. */
int unit_lba_status(int host_no, struct scsi_cmd *cmd)
{
	struct scsi_lu *lu = cmd->dev;
	uint64_t lba = get_unaligned_be64(&cmd->scb[2]);
	uint32_t room = get_unaligned_be32(&cmd->scb[10]);
	struct request *request;

	if (lba >= lu->size >> lu->blk_shift) {
		sense_data_build(cmd, ILLEGAL_REQUEST, ASC_LBA_OUT_OF_RANGE);
		return SAM_STAT_CHECK_CONDITION;
	}
	if (room < 4 || scsi_get_in_length(cmd) < room) {
		sense_data_build(cmd, ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
		return SAM_STAT_CHECK_CONDITION;
	}
	request = request_new(unit_of(lu), cmd);
	if (!request)
		return SAM_STAT_BUSY;
	request->from = lba << lu->blk_shift;
	request->to = request->from;
	submit(request);
	return SAM_STAT_GOOD;
}
