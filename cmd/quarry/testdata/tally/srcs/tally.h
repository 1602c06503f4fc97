#ifndef TALLY_H
#define TALLY_H

#include <stddef.h>

struct tally {
	unsigned long lines, words, bytes;
	int in_word;
};

/* tally_add counts what is in a piece of text; words may go on in the next. */
void tally_add(struct tally *t, const char *text, size_t size);

/* tally_print writes the counts and a name as one line into buf, and returns
 * what snprintf does. */
int tally_print(const struct tally *t, const char *name, char *buf, size_t size);

/* tally_machine is what the compiler made the library for, as of uname -m. */
const char *tally_machine(void);

#endif
