#include "tally.h"

#include <stdio.h>

int tally_print(const struct tally *t, const char *name, char *buf, size_t size)
{
	return snprintf(buf, size, "%lu %lu %lu %s", t->lines, t->words, t->bytes, name);
}
