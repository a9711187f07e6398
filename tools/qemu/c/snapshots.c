/*
 * QEMU's internal snapshots are the target's. QEMU waits for these calls where it stands, so the guest stands still while a snapshot is
 * made: up to snapshot-timeout seconds, if the backend is slow.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "driver.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"

/* These callbacks give QEMU a number alone; the words go where its own do. */
static int report(const char *what, const char *snapshot)
{
    int number = errno;

    error_report("cannot %s snapshot '%s': %s", what, snapshot, ovs.ovs_last_error());
    return number ? -number : -EIO;
}

static bool is_name(const char *name)
{
    return name && name[0] && strlen(name) < RINGWAY_SNAPSHOT_NAME_SIZE;
}

/* QEMU has an id beside the name: it is the same. */
static const char *one_of(const char *id, const char *name)
{
    const char *first = id && id[0] ? id : NULL;
    const char *second = name && name[0] ? name : NULL;

    return first && second && strcmp(first, second) ? NULL : (second ?: first);
}

int ringway_snapshot_create(BlockDriverState *bs, QEMUSnapshotInfo *info)
{
    RingwayState *s = bs->opaque;

    if (!s->ctx) {
        return -ESHUTDOWN;
    }
    if (!is_name(info->name)) {
        error_report("a snapshot's name has 1 to %d bytes", RINGWAY_SNAPSHOT_NAME_SIZE - 1);
        return -EINVAL;
    }
    if (ovs.ovs_snapshot_create(s->ctx, s->settings.volume, info->name, s->settings.snapshot_timeout)) {
        return report("create", info->name);
    }
    pstrcpy(info->id_str, sizeof(info->id_str), info->name);
    return 0;
}

/* The volume has to be closed meanwhile. */
int ringway_snapshot_goto(BlockDriverState *bs, const char *snapshot)
{
    RingwayState *s = bs->opaque;
    int oflag = s->oflag;
    Error *error = NULL;
    ovs_ctx_t *alone;
    int ret = ringway_connect(&s->settings, NULL, 0, &alone, &error);

    if (ret < 0) {
        error_report_err(error);
        return ret;
    }
    if (s->ctx) {
        /* Whether the control socket is this volume's target's can only be told while it is open. */
        if (ovs.ovs_snapshot_time(s->ctx, s->settings.volume, snapshot) < 0) {
            ret = report("go to", snapshot);
            ovs.ovs_ctx_destroy(alone);
            return ret;
        }
        ovs.ovs_ctx_destroy(s->ctx);
        s->ctx = NULL;
    }
    if (ovs.ovs_snapshot_rollback(alone, s->settings.volume, snapshot)) {
        ret = report("go to", snapshot);
    }
    ovs.ovs_ctx_destroy(alone);
    if (ringway_replace(s, s->settings.volume, oflag, &error) < 0) {
        error_report_err(error);
        ret = ret < 0 ? ret : -EIO;
    }
    ringway_note_length(bs);
    return ret;
}

int ringway_snapshot_delete(BlockDriverState *bs, const char *id, const char *name, Error **errp)
{
    RingwayState *s = bs->opaque;
    const char *snapshot = one_of(id, name);

    if (!s->ctx) {
        error_setg(errp, "the volume is closed");
        return -ESHUTDOWN;
    }
    if (!snapshot) {
        error_setg(errp, "there is no snapshot with id '%s' and name '%s': both are the same", id ?: "", name ?: "");
        return -ENOENT;
    }
    if (ovs.ovs_snapshot_remove(s->ctx, s->settings.volume, snapshot)) {
        int number = errno;

        error_setg(errp, "%s", ovs.ovs_last_error());
        return -number;
    }
    return 0;
}

/* Names as the library has them; *count without the one that marks the end. */
static ovs_snapshot_info_t *names(RingwayState *s, int *count)
{
    int room = 16;

    for (;;) {
        ovs_snapshot_info_t *list = g_new0(ovs_snapshot_info_t, room);

        *count = ovs.ovs_snapshot_list(s->ctx, s->settings.volume, list, &room);
        if (*count >= 0) {
            return list;
        }
        g_free(list);
        /* There may be more of them than a moment ago: room was set to what is needed. */
        if (errno != ERANGE) {
            return NULL;
        }
    }
}

int ringway_snapshot_list(BlockDriverState *bs, QEMUSnapshotInfo **infos)
{
    RingwayState *s = bs->opaque;
    ovs_snapshot_info_t *list;
    int count = 0;

    *infos = NULL;
    /* A snapshot has none. */
    if (!s->ctx || strchr(s->settings.volume, '@')) {
        return s->ctx ? 0 : -ESHUTDOWN;
    }
    list = names(s, &count);
    if (!list) {
        /* The target may have no control socket here. Any other number would fail what only asks by the way: info, migration. */
        return -ENOTSUP;
    }
    *infos = count ? g_new0(QEMUSnapshotInfo, count) : NULL;
    for (int at = 0; at < count; at++) {
        QEMUSnapshotInfo *info = &(*infos)[at];
        int64_t made = ovs.ovs_snapshot_time(s->ctx, s->settings.volume, list[at].name);

        pstrcpy(info->id_str, sizeof(info->id_str), list[at].name);
        pstrcpy(info->name, sizeof(info->name), list[at].name);
        /* One that went meanwhile is as old as can be. */
        info->date_sec = made < 0 ? 0 : made;
    }
    ovs.ovs_snapshot_list_free(list);
    g_free(list);
    return count;
}

/* For those who only read: qemu-img convert -l. */
int ringway_snapshot_load_tmp(BlockDriverState *bs, const char *id, const char *name, Error **errp)
{
    RingwayState *s = bs->opaque;
    const char *snapshot = one_of(id, name);
    g_autofree char *full = NULL;
    int ret;

    if (!snapshot || s->oflag != O_RDONLY) {
        error_setg(errp, "a snapshot is opened by its name, and read-only");
        return -EINVAL;
    }
    full = g_strdup_printf("%s@%s", s->settings.volume, snapshot);
    ret = ringway_replace(s, full, O_RDONLY, errp);
    if (ret >= 0) {
        g_free(s->settings.volume);
        s->settings.volume = g_steal_pointer(&full);
        ringway_note_length(bs);
    }
    return ret;
}
