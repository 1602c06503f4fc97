#include "tally.h"

#include <ctype.h>

void tally_add(struct tally *t, const char *text, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		int blank = isspace((unsigned char)text[i]);

		t->bytes++;
		t->lines += text[i] == '\n';
		t->words += !blank && !t->in_word;
		t->in_word = !blank;
	}
}
