#ifndef GREET_H
#define GREET_H

#include <stddef.h>

/* greet writes a greeting for who into buf and returns its length, which may
 * be larger than what fitted, as of snprintf. */
int greet(char *buf, size_t size, const char *who);

#endif
