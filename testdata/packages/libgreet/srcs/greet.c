#include "greet.h"

#include <stdio.h>

int greet(char *buf, size_t size, const char *who)
{
	return snprintf(buf, size, "Greetings, %s!", who);
}
