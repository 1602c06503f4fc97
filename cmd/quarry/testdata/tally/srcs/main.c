#include "tally.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	char buf[4096];

	if (argc == 2 && strcmp(argv[1], "--machine") == 0)
		return puts(tally_machine()) < 0;
	for (int i = 1; i < argc; i++) {
		struct tally t = { 0 };
		FILE *f = fopen(argv[i], "r");
		size_t n;

		if (!f) {
			perror(argv[i]);
			return 1;
		}
		while ((n = fread(buf, 1, sizeof buf, f)) > 0)
			tally_add(&t, buf, n);
		fclose(f);
		tally_print(&t, argv[i], buf, sizeof buf);
		puts(buf);
	}
	return 0;
}
