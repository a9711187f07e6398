/*
 * Filenames and options of volumes:
 *
 *   openvstorage+{tcp,rdma}:HOST[:PORT]/VOLUME[:snapshot-timeout=N][:enable-ha=on|off]
 *   openvstorage[+shm]:VOLUME[:snapshot-timeout=N][:enable-ha=on|off]
 *   driver=openvstorage,volume=V[,transport=T,host=H,port=P,snapshot-timeout=N,enable-ha=on|off]
 *
 * HOST ends at the first '/', VOLUME at the next ':' or ',', by which options are separated: neither can be in a volume's name.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#include "ringway.h"
#include "qemu/cutils.h"

#define SCHEME "openvstorage"
#define SEPARATORS ":,"

static bool is_network(const char *transport)
{
    return strcmp(transport, "shm") != 0;
}

/* What a driver's name, or a filename's protocol, says of the transport; NULL: nothing. */
static const char *transport_of(const char *driver)
{
    return g_str_has_prefix(driver, SCHEME "+") ? driver + strlen(SCHEME "+") : NULL;
}

/* A list names ports of its own; so does nothing that is an address of IPv6 without brackets. */
static void put_host(QDict *options, const char *text)
{
    const char *bracket = text[0] == '[' ? strchr(text, ']') : NULL;
    const char *port = bracket ? (bracket[1] == ':' ? bracket + 1 : NULL) : strchr(text, ':');
    g_autofree char *host = NULL;

    if (!port || strchr(text, ',') || (!bracket && strchr(port + 1, ':'))) {
        qdict_put_str(options, "host", text);
        return;
    }
    host = g_strndup(text, port - text);
    qdict_put_str(options, "host", host);
    qdict_put_str(options, "port", port + 1);
}

/* NAME=VALUE behind the volume. */
static bool put_option(QDict *options, char *text, Error **errp)
{
    char *value = strchr(text, '=');

    if (value) {
        *value++ = 0;
    }
    if (!value || (strcmp(text, "snapshot-timeout") && strcmp(text, "enable-ha"))) {
        error_setg(errp, "'%s' is no option of a volume: there are snapshot-timeout=SECONDS and enable-ha=on|off", text);
        return false;
    }
    if (qdict_haskey(options, text)) {
        error_setg(errp, "%s is specified twice", text);
        return false;
    }
    qdict_put_str(options, text, value);
    return true;
}

void ringway_parse_filename(const char *filename, QDict *options, Error **errp)
{
    static const char *const own[] = { "volume", "snapshot-timeout", "host", "port", "transport" };
    const char *colon = strchr(filename, ':');
    g_autofree char *scheme = colon ? g_strndup(filename, colon - filename) : g_strdup(SCHEME);
    g_autofree char *rest = g_strdup(colon ? colon + 1 : filename);
    const char *transport = transport_of(scheme) ?: "shm";
    char *volume = rest;
    char *next;

    for (size_t at = 0; at < G_N_ELEMENTS(own); at++) {
        if (qdict_haskey(options, own[at])) {
            error_setg(errp, "volume/stimeout/server/port/transport and a filename may not be specified at the same time");
            return;
        }
    }
    if (is_network(transport)) {
        volume = strchr(rest, '/');
        if (!volume || volume == rest || rest[0] == ':' || rest[0] == ',' || !volume[1] || strchr(SEPARATORS, volume[1])) {
            error_setg(errp, "server and volume name must be specified");
            return;
        }
        *volume++ = 0;
        put_host(options, rest);
    } else if (!rest[0] || strchr(SEPARATORS, rest[0])) {
        error_setg(errp, "volume name must be specified");
        return;
    }
    next = strpbrk(volume, SEPARATORS);
    while (next) {
        char *option = next + 1;

        *next = 0;
        next = strpbrk(option, SEPARATORS);
        if (next) {
            *next = 0;
        }
        if (!put_option(options, option, errp)) {
            return;
        }
    }
    qdict_put_str(options, "volume", volume);
}

static QemuOptsList runtime_options = {
    .name = "openvstorage",
    .head = QTAILQ_HEAD_INITIALIZER(runtime_options.head),
    .desc = {
        { .name = "transport", .type = QEMU_OPT_STRING, .help = "shm, tcp or rdma" },
        { .name = "host", .type = QEMU_OPT_STRING, .help = "of the target; several addresses of one with commas" },
        { .name = "port", .type = QEMU_OPT_STRING, .help = "of the target, 21321 by default" },
        { .name = "volume", .type = QEMU_OPT_STRING, .help = "VOLUME or VOLUME@SNAPSHOT" },
        { .name = "snapshot-timeout", .type = QEMU_OPT_STRING, .help = "seconds until a snapshot is synced, or there is none" },
        { .name = "enable-ha", .type = QEMU_OPT_BOOL, .help = "wait for a target that goes away" },
        { /* end of list */ }
    },
};

/* A whole number from least to most. */
static bool number(const char *name, const char *text, int64_t least, int64_t most, int64_t *value, Error **errp)
{
    if (!is_digit(text[0]) || qemu_strtoi64(text, NULL, 10, value) || *value < least || *value > most) {
        error_setg(errp, "%s '%s' is not a number from %" PRId64 " to %" PRId64, name, text, least, most);
        return false;
    }
    return true;
}

static bool check_transport(const char *driver, const char *asked, Settings *settings, Error **errp)
{
    const char *named = transport_of(driver);

    settings->transport = g_strdup(asked ?: named ?: "shm");
    if (asked && named && strcmp(asked, named)) {
        error_setg(errp, "transport '%s' does not go with driver '%s'", asked, driver);
        return false;
    }
    if (strcmp(settings->transport, "shm") && strcmp(settings->transport, "tcp") && strcmp(settings->transport, "rdma")) {
        error_setg(errp, "transport '%s' is none of shm, tcp and rdma", settings->transport);
        return false;
    }
    return true;
}

static bool check(const char *driver, QemuOpts *opts, Settings *settings, Error **errp)
{
    const char *port = qemu_opt_get(opts, "port");
    const char *timeout = qemu_opt_get(opts, "snapshot-timeout");
    int64_t value = RINGWAY_PORT;

    if (!check_transport(driver, qemu_opt_get(opts, "transport"), settings, errp)) {
        return false;
    }
    settings->host = g_strdup(qemu_opt_get(opts, "host"));
    settings->volume = g_strdup(qemu_opt_get(opts, "volume"));
    settings->enable_ha = qemu_opt_get_bool(opts, "enable-ha", true);
    settings->snapshot_timeout = RINGWAY_SNAPSHOT_TIMEOUT;
    if (!settings->volume || !settings->volume[0]) {
        error_setg(errp, "volume name must be specified");
        return false;
    }
    if (is_network(settings->transport) && (!settings->host || !settings->host[0])) {
        error_setg(errp, "server/port must be specified");
        return false;
    }
    if (!is_network(settings->transport) && (settings->host || port)) {
        error_setg(errp, "host and port go with transport tcp or rdma: shm is memory shared with the target of this machine");
        return false;
    }
    if (port && !number("port", port, 1, 65535, &value, errp)) {
        return false;
    }
    settings->port = value;
    return !timeout || number("snapshot-timeout", timeout, 0, INT32_MAX, &settings->snapshot_timeout, errp);
}

/* Takes what it knows out of the options. */
bool ringway_settings(const char *driver, QDict *options, Settings *settings, Error **errp)
{
    QemuOpts *opts = qemu_opts_create(&runtime_options, NULL, 0, errp);
    bool good = opts && qemu_opts_absorb_qdict(opts, options, errp) && check(driver, opts, settings, errp);

    qemu_opts_del(opts);
    return good;
}

void ringway_free_settings(Settings *settings)
{
    g_free(settings->transport);
    g_free(settings->host);
    g_free(settings->volume);
    *settings = (Settings) { 0 };
}

/* As the manual spells it. */
void ringway_filename(const char *driver, const Settings *settings, char *filename, size_t size)
{
    g_autofree char *host = g_strdup("");
    g_autofree char *timeout = g_strdup("");

    if (is_network(settings->transport)) {
        bool list = strchr(settings->host, ',') != NULL;
        bool bare = settings->host[0] != '[' && strchr(settings->host, ':');

        g_free(host);
        host = list ? g_strdup_printf("%s/", settings->host)
                    : g_strdup_printf(bare ? "[%s]:%d/" : "%s:%d/", settings->host, settings->port);
    }
    if (settings->snapshot_timeout != RINGWAY_SNAPSHOT_TIMEOUT) {
        g_free(timeout);
        timeout = g_strdup_printf(":snapshot-timeout=%" PRId64, settings->snapshot_timeout);
    }
    snprintf(filename, size, "%s%s%s:%s%s%s%s", SCHEME, transport_of(driver) || is_network(settings->transport) ? "+" : "",
             transport_of(driver) || is_network(settings->transport) ? settings->transport : "", host, settings->volume, timeout,
             settings->enable_ha ? "" : ":enable-ha=off");
}
