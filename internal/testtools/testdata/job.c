/* A job that a test holds in its hands: it writes down when it begins and when it
 * ends, and ends when it is let go.
 *
 *   job TRACE GATE             is one job, until a byte comes out of the FIFO GATE
 *   job TRACE -- COMMAND...    is COMMAND, written down
 *   job TRACE GATE N           runs N of the first kind, as many at one time as build
 *                              control says over $BUILDSOCKET: what patched build programs do
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int trace;

static void fail(const char *what) { perror(what); exit(3); }

static void note(char what)
{
	struct timespec now;
	char line[64];
	clock_gettime(CLOCK_MONOTONIC, &now);
	int n = snprintf(line, sizeof line, "%c %d %lld\n", what, (int)getpid(), now.tv_sec * 1000000000LL + now.tv_nsec);
	if (write(trace, line, n) != n) fail("trace");
}

static void gated(const char *gate)
{
	char open_for_all[4096], byte;
	note('s');
	snprintf(open_for_all, sizeof open_for_all, "%s.open", gate);
	int fd = open(gate, O_RDWR | O_CLOEXEC);
	if (fd < 0) fail(gate);
	if (access(open_for_all, F_OK) != 0)
		while (read(fd, &byte, 1) != 1)
			if (errno != EINTR) fail("gate");
	note('e');
}

static void gone(int sig) { (void)sig; }

static int steered(const char *gate, int left)
{
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	const char *path = getenv("BUILDSOCKET"), *token = getenv("BUILDTOKEN");
	char said[64];
	int jobs = 1, running = 0, used = 0, status;
	if (!path || !token || strlen(path) >= sizeof to.sun_path) { fprintf(stderr, "no build control\n"); return 4; }
	strcpy(to.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) fail(path);
	if (dprintf(fd, "%s\r\n", token) < 0) fail("token");
	struct sigaction act = {.sa_handler = gone}; /* interrupts ppoll */
	sigset_t blocked, before;
	sigaction(SIGCHLD, &act, NULL);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGCHLD);
	sigprocmask(SIG_BLOCK, &blocked, &before);
	while (left > 0 || running > 0) {
		while (left > 0 && running < jobs) {
			pid_t pid = fork();
			if (pid < 0) fail("fork");
			if (pid == 0) { sigprocmask(SIG_SETMASK, &before, NULL); gated(gate); _exit(0); }
			left--; running++;
		}
		struct pollfd p = {.fd = fd, .events = POLLIN};
		if (ppoll(&p, 1, NULL, &before) > 0) {
			int n = read(fd, said + used, sizeof said - 1 - used);
			if (n <= 0) { fprintf(stderr, "build control is gone\n"); return 5; }
			said[used += n] = 0;
			for (char *end; (end = strpbrk(said, "\r\n")); ) {
				if (end > said) jobs = atoi(said);
				used -= end + 1 - said;
				memmove(said, end + 1, used + 1);
			}
			if (jobs < 1) jobs = 1;
		}
		while (running > 0 && waitpid(-1, &status, WNOHANG) > 0) running--;
	}
	return 0;
}

int main(int argc, char **argv)
{
	int status;
	if (argc < 3 || (trace = open(argv[1], O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666)) < 0) fail("trace");
	if (strcmp(argv[2], "--") != 0) {
		if (argc == 4) return steered(argv[2], atoi(argv[3]));
		gated(argv[2]);
		return 0;
	}
	note('s');
	pid_t pid = fork();
	if (pid < 0) fail("fork");
	if (pid == 0) { execvp(argv[3], argv + 3); fail(argv[3]); }
	while (waitpid(pid, &status, 0) < 0) if (errno != EINTR) fail("wait");
	note('e');
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
