#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* hello prints the first line of its configuration file, or a greeting of its
 * own where there is none. */
int main(void)
{
	const char *path = getenv("HELLO_CONF");
	char line[256] = "Hello, stranger!";
	FILE *f = fopen(path ? path : "/etc/hello.conf", "r");

	if (f) {
		if (fgets(line, sizeof line, f))
			line[strcspn(line, "\n")] = '\0';
		fclose(f);
	}
	puts(line);
	return 0;
}
