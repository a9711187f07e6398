/*
 * What is given as -b and as --bsopts:
 *
 *	openvstorage, openvstorage+shm		VOLUME[:enable-ha=on|off]
 *	openvstorage+tcp, openvstorage+rdma	HOST[:PORT]/VOLUME[:enable-ha=on|off]
 *
 * A volume's name may have '/' in it and never ':'. tgtd itself cuts what it is given at each comma, so nothing here has one.
 *
 * Copyright 2026 the Ringway authors
 * SPDX-License-Identifier: GPL-2.0-only
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store.h"

int option_parse(const char *option, bool *high_availability, char *why, size_t room)
{
	if (!strcmp(option, "enable-ha=on")) {
		*high_availability = true;
	} else if (!strcmp(option, "enable-ha=off")) {
		*high_availability = false;
	} else {
		snprintf(why, room, "option \"%s\" is none of enable-ha=on and enable-ha=off", option);
		return -1;
	}
	return 0;
}

static int port_parse(const char *text, int *port, char *why, size_t room)
{
	char *end;
	long number;

	*port = 0;
	if (!*text)
		return 0;	/* the manual's grammar has HOST:/VOLUME */
	errno = 0;
	number = strtol(text, &end, 10);
	if (errno || *end || *text < '0' || *text > '9' || number < 1 || number > 65535) {
		snprintf(why, room, "port \"%s\" is no number from 1 to 65535", text);
		return -1;
	}
	*port = number;
	return 0;
}

/* HOST, HOST:PORT, [V6] or [V6]:PORT, which end at `text`'s. */
static int host_parse(char *text, struct place *place, char *why, size_t room)
{
	char *port = NULL;

	place->host = text;
	if (*text == '[') {
		char *bracket = strchr(text, ']');

		if (!bracket || (bracket[1] && bracket[1] != ':')) {
			snprintf(why, room, "host \"%s\": an address in brackets ends in ] or ]:PORT", text);
			return -1;
		}
		port = bracket[1] ? bracket + 2 : NULL;
		*bracket = 0;
		place->host = text + 1;
	} else {
		port = strchr(text, ':');
		if (port)
			*port++ = 0;
	}
	if (!*place->host) {
		snprintf(why, room, "a host is wanted before the volume: HOST[:PORT]/VOLUME");
		return -1;
	}
	return port ? port_parse(port, &place->port, why, room) : 0;
}

int place_parse(const char *path, enum transport transport, struct place *place, bool *high_availability, char *why, size_t room)
{
	char *volume, *option;

	memset(place, 0, sizeof(*place));
	place->text = strdup(path);
	if (!place->text) {
		snprintf(why, room, "no memory");
		return -1;
	}
	volume = place->text;
	if (transport != TRANSPORT_SHM) {
		volume = strchr(place->text, '/');
		if (!volume) {
			snprintf(why, room, "\"%s\" has no host: HOST[:PORT]/VOLUME is wanted", path);
			goto wrong;
		}
		*volume++ = 0;
		if (host_parse(place->text, place, why, room))
			goto wrong;
	}
	for (option = strchr(volume, ':'); option;) {
		char *next;

		*option++ = 0;
		next = strchr(option, ':');
		if (next)
			*next = 0;
		if (option_parse(option, high_availability, why, room))
			goto wrong;
		if (next)
			*next = ':';
		option = next;
	}
	if (!*volume) {
		snprintf(why, room, "\"%s\" names no volume", path);
		goto wrong;
	}
	place->volume = volume;
	return 0;
wrong:
	free(place->text);
	place->text = NULL;
	return -1;
}
