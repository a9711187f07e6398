/*
 * Commands that are several requests of the library's, one after the other on the unit's own thread: COMPARE AND WRITE, ORWRITE, WRITE
 * AND VERIFY, VERIFY, WRITE SAME, UNMAP, GET LBA STATUS. They are rare; what is frequent does not come here.
 *
 * This thread reads of a command and of its logical unit what does not change while the command runs, and writes nothing to them but
 * data. What is data of the initiator's is checked here: tgt has checked the CDB alone.
 *
 * Copyright 2026 the Ringway authors
 * SPDX-License-Identifier: GPL-2.0-only
 */
#include <string.h>

#include "store.h"

#define PIECE(bytes)	((bytes) < SCRATCH_BYTES ? (bytes) : SCRATCH_BYTES)

/* MAXIMUM COMPARE AND WRITE LENGTH, as tgt has it in its VPD page of block limits. */
#define COMPARE_BLOCKS_MAX	128

static const struct failure none;

/* What a call of the library returned, where all of it was to be moved. */
static struct failure whole(ssize_t moved, size_t wanted)
{
	if (moved < 0)
		return failed(errno);
	return (size_t)moved == wanted ? none : failed(EIO);
}

static struct failure read_piece(struct unit *unit, uint64_t at, size_t bytes)
{
	return whole(ovs_read(unit->ctx, unit->scratch, bytes, at), bytes);
}

static struct failure write_piece(struct unit *unit, const void *data, uint64_t at, size_t bytes)
{
	return whole(ovs_write(unit->ctx, data, bytes, at), bytes);
}

/* Each `period` bytes of the volume with the same of `data`'s; where they differ, the sense data has the byte's number. */
static struct failure compare(struct request *request, const uint8_t *data, uint64_t bytes, uint64_t period)
{
	struct unit *unit = request->unit;
	uint64_t done = 0;

	while (done < bytes) {
		size_t piece = PIECE(bytes - done);
		struct failure failure = read_piece(unit, request->from + done, piece);

		if (failure.error)
			return failure;
		for (size_t i = 0; i < piece; i++) {
			if (unit->scratch[i] == data[(done + i) % period])
				continue;
			failure = refused(MISCOMPARE, ASC_MISCOMPARE_DURING_VERIFY_OPERATION);
			failure.has_info = true;
			failure.info = done + i;
			return failure;
		}
		done += piece;
	}
	return none;
}

static struct failure compare_and_write(struct request *request)
{
	const uint8_t *data = scsi_get_out_buffer(request->cmd);
	struct failure failure;

	/* What is compared, and behind it as much that is written; and no more than tgt says can be. */
	if (scsi_get_out_length(request->cmd) != 2 * request->bytes || scsi_rw_count(request->cmd->scb) > COMPARE_BLOCKS_MAX)
		return refused(ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
	if (!request->bytes)
		return none;
	failure = compare(request, data, request->bytes, request->bytes);
	if (failure.error)
		return failure;
	return write_piece(request->unit, data + request->bytes, request->from, request->bytes);
}

static struct failure or_write(struct request *request)
{
	struct unit *unit = request->unit;
	const uint8_t *data = scsi_get_out_buffer(request->cmd);
	uint64_t bytes = min_t(uint64_t, request->bytes, scsi_get_out_length(request->cmd));
	uint64_t done = 0;

	while (done < bytes) {
		size_t piece = PIECE(bytes - done);
		struct failure failure = read_piece(unit, request->from + done, piece);

		if (failure.error)
			return failure;
		for (size_t i = 0; i < piece; i++)
			unit->scratch[i] |= data[done + i];
		failure = write_piece(unit, unit->scratch, request->from + done, piece);
		if (failure.error)
			return failure;
		done += piece;
	}
	return none;
}

static struct failure write_and_verify(struct request *request)
{
	const uint8_t *data = scsi_get_out_buffer(request->cmd);
	uint64_t bytes = min_t(uint64_t, request->bytes, scsi_get_out_length(request->cmd));
	struct failure failure;

	if (!bytes)
		return none;
	failure = write_piece(request->unit, data, request->from, bytes);
	return failure.error ? failure : compare(request, data, bytes, bytes);
}

/* BYTCHK 01: all the data there is; 11: one block, with which each is compared. */
static struct failure verify(struct request *request)
{
	struct scsi_cmd *cmd = request->cmd;
	uint64_t sent = scsi_get_out_length(cmd), block = 1ull << cmd->dev->blk_shift;
	const uint8_t *data = scsi_get_out_buffer(cmd);

	if ((cmd->scb[1] & 0x06) == 0x06) {
		if (sent < block)
			return refused(ILLEGAL_REQUEST, ASC_PARAMETER_LIST_LENGTH_ERR);
		return compare(request, data, request->bytes, block);
	}
	sent = min_t(uint64_t, sent, request->bytes);
	return sent ? compare(request, data, sent, sent) : none;
}

static bool is_zero(const uint8_t *data, size_t bytes)
{
	return !*data && !memcmp(data, data + 1, bytes - 1);
}

/* Blocks that read as zeros afterwards, and whose space is given back where whole blocks of the volume's are covered. */
static struct failure write_zeroes(struct unit *unit, uint64_t at, uint64_t bytes)
{
	if (!bytes)
		return none;
	return ovs_write_zeroes(unit->ctx, at, bytes) ? failed(errno) : none;
}

static struct failure write_same(struct request *request)
{
	struct unit *unit = request->unit;
	struct scsi_cmd *cmd = request->cmd;
	uint64_t block = 1ull << cmd->dev->blk_shift, done = 0;
	const uint8_t *data = scsi_get_out_buffer(cmd);
	bool no_data = cmd->scb[0] == WRITE_SAME_16 && cmd->scb[1] & 0x01, is_unmapped = cmd->scb[1] & 0x08;

	/* LBDATA and PBDATA, which SBC-3 no longer has, put numbers into each block. */
	if (cmd->scb[1] & 0x06)
		return refused(ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_CDB);
	if (!no_data && scsi_get_out_length(cmd) < block)
		return refused(ILLEGAL_REQUEST, ASC_PARAMETER_LIST_LENGTH_ERR);
	/* UNMAP is for blocks that read as zeros afterwards; initiators expect that whatever they send along. */
	if (no_data || is_unmapped || is_zero(data, block))
		return write_zeroes(unit, request->from, request->bytes);
	for (size_t filled = 0; filled < PIECE(request->bytes); filled += block)
		memcpy(unit->scratch + filled, data, block);
	while (done < request->bytes) {
		size_t piece = PIECE(request->bytes - done);
		struct failure failure = write_piece(unit, unit->scratch, request->from + done, piece);

		if (failure.error)
			return failure;
		done += piece;
	}
	return none;
}

/* A range of UNMAP's: 8 bytes LBA, 4 bytes blocks, 4 bytes reserved. */
#define RANGE_BYTES	16
#define RANGES_AT	8

static struct failure unmap(struct request *request)
{
	struct scsi_cmd *cmd = request->cmd;
	const uint8_t *list = scsi_get_out_buffer(cmd);
	uint32_t shift = cmd->dev->blk_shift;
	uint64_t blocks = cmd->dev->size >> shift;
	uint32_t sent = min_t(uint32_t, get_unaligned_be16(&cmd->scb[7]), scsi_get_out_length(cmd));
	uint32_t ranges;

	if (!sent)
		return none;
	if (sent < RANGES_AT)
		return refused(ILLEGAL_REQUEST, ASC_PARAMETER_LIST_LENGTH_ERR);
	ranges = min_t(uint32_t, get_unaligned_be16(list + 2), sent - RANGES_AT) / RANGE_BYTES;
	if (ranges > UNMAP_RANGES_MAX)
		return refused(ILLEGAL_REQUEST, ASC_INVALID_FIELD_IN_PARMS);
	/* All or nothing of what is wrong from the start. */
	for (uint32_t i = 0; i < ranges; i++) {
		uint64_t lba = get_unaligned_be64(list + RANGES_AT + i * RANGE_BYTES);
		uint32_t count = get_unaligned_be32(list + RANGES_AT + i * RANGE_BYTES + 8);

		/* A range of no blocks is none, wherever it is. */
		if (count && (lba > blocks || count > blocks - lba))
			return refused(ILLEGAL_REQUEST, ASC_LBA_OUT_OF_RANGE);
	}
	for (uint32_t i = 0; i < ranges; i++) {
		uint64_t lba = get_unaligned_be64(list + RANGES_AT + i * RANGE_BYTES);
		uint64_t count = get_unaligned_be32(list + RANGES_AT + i * RANGE_BYTES + 8);
		/* The unit says that what is unmapped reads as zeros, so that has to be so of parts of the volume's blocks too. */
		struct failure failure = write_zeroes(request->unit, lba << shift, count << shift);

		if (failure.error)
			return failure;
	}
	return none;
}

/* An answer has a head of 8 bytes, and 16 for each stretch of blocks that are alike. */
#define STATUS_HEAD	8
#define STATUS_BYTES	16
#define STATUS_MAX	64
/* What the volume tells apart. A block of a unit that is larger may be there in part. */
#define EXTENT_SHIFT	12

static struct failure lba_status(struct request *request)
{
	struct unit *unit = request->unit;
	struct scsi_cmd *cmd = request->cmd;
	uint32_t shift = cmd->dev->blk_shift, room = get_unaligned_be32(&cmd->scb[10]);
	uint64_t at = request->from, size = cmd->dev->size;
	uint8_t answer[STATUS_HEAD + STATUS_MAX * STATUS_BYTES] = { 0 };
	uint32_t filled = STATUS_HEAD;

	while (at < size && filled < sizeof(answer) && (filled < room || filled == STATUS_HEAD)) {
		ovs_extent_t extents[STATUS_MAX] = { { .nbytes = size - at, .data = 1 } };
		int count = shift > EXTENT_SHIFT ? -1 : ovs_block_status(unit->ctx, at, size - at, extents, STATUS_MAX);

		/* Where it cannot be asked, all may be there, which is always true enough. */
		for (int i = 0; i < (count < 0 ? 1 : count) && filled < sizeof(answer); i++) {
			uint64_t blocks = extents[i].nbytes >> shift, same = min_t(uint64_t, blocks, UINT32_MAX);

			put_unaligned_be64(at >> shift, answer + filled);
			put_unaligned_be32(same, answer + filled + 8);
			answer[filled + 12] = extents[i].data ? 0 : 1;
			filled += STATUS_BYTES;
			at += same << shift;
			if (same < blocks)
				break;
		}
		if (count <= 0)
			break;
	}
	put_unaligned_be32(filled - 4, answer);
	filled = min_t(uint32_t, filled, room);
	memcpy(scsi_get_in_buffer(cmd), answer, filled);
	request->bytes = filled;
	return none;
}

static struct failure run(struct request *request)
{
	switch (request->cmd->scb[0]) {
	case COMPARE_AND_WRITE:
		return compare_and_write(request);
	case ORWRITE_16:
		return or_write(request);
	case WRITE_VERIFY:
	case WRITE_VERIFY_12:
	case WRITE_VERIFY_16:
		return write_and_verify(request);
	case VERIFY_10:
	case VERIFY_12:
	case VERIFY_16:
		return verify(request);
	case WRITE_SAME:
	case WRITE_SAME_16:
		return write_same(request);
	case UNMAP:
		return unmap(request);
	case SERVICE_ACTION_IN:
		return lba_status(request);
	default:
		return refused(ILLEGAL_REQUEST, ASC_INVALID_OP_CODE);
	}
}

void *unit_work(void *argument)
{
	struct unit *unit = argument;

	pthread_mutex_lock(&unit->lock);
	while (true) {
		struct request *request;

		while (list_empty(&unit->work) && !unit->stop)
			pthread_cond_wait(&unit->more, &unit->lock);
		if (list_empty(&unit->work))
			break;
		request = list_first_entry(&unit->work, struct request, way);
		list_del(&request->way);
		pthread_mutex_unlock(&unit->lock);
		request->failure = run(request);
		if (!request->failure.error && request->flushed && ovs_flush(unit->ctx))
			request->failure = failed(errno);
		request_ended(request);
		pthread_mutex_lock(&unit->lock);
	}
	pthread_mutex_unlock(&unit->lock);
	return NULL;
}
