#include "config.h"

#include <ctype.h>
#include <stdio.h>

int main(void)
{
	char text[] = "Hello, " WHO "!";

	for (char *p = text; *p; p++) {
#ifdef SHOUTING
		*p = (char)toupper((unsigned char)*p);
#endif
		putchar(*p);
	}
	putchar('\n');
	return 0;
}
