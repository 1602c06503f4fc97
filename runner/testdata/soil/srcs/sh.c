/* Takes the place of /bin/sh and of make: leaves a trace, then does the work. */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
	int fd = open("/var/tmp/soil-trace", O_WRONLY | O_CREAT | O_APPEND, 0666);
	if (write(fd, "soil\n", 5) != 5)
		return 99;
	close(fd);
	execv(strcmp(name, "make") == 0 ? "/usr/bin/make.real" : "/bin/dash", argv);
	return 98;
}
