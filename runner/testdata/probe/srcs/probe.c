/* Lists all of the file system that is not the kernel's, and what the kernel
   keeps for this workspace, one line each, for comparison. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <mqueue.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

static long since; /* what is younger was made with the workspace, at no certain time */

static int one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	static const char *skip[] = {"/proc", "/sys", "/quarry/home/probe", NULL};
	for (int i = 0; skip[i]; i++)
		if (strncmp(path, skip[i], strlen(skip[i])) == 0)
			return FTW_SKIP_SUBTREE;
	printf("file %s mode %o owner %d:%d", path, st->st_mode, (int)st->st_uid, (int)st->st_gid);
	if (S_ISREG(st->st_mode) || S_ISLNK(st->st_mode))
		printf(" size %lld", (long long)st->st_size);
	if (S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode))
		printf(" device %llx", (long long)st->st_rdev);
	if (st->st_mtime < since)
		printf(" time %lld.%09ld", (long long)st->st_mtime, st->st_mtim.tv_nsec);
	char buf[65536];
	if (S_ISLNK(st->st_mode)) {
		ssize_t n = readlink(path, buf, sizeof buf);
		printf(" to %.*s", (int)n, buf);
	}
	ssize_t n = llistxattr(path, buf, sizeof buf);
	for (char *x = buf; n > 0 && x < buf + n; x += strlen(x) + 1)
		printf(" xattr %s", x);
	printf("\n");
	return FTW_CONTINUE;
}

static void tell(const char *what, long n)
{
	printf("%s: %s\n", what, n >= 0 ? "there" : strerror(errno));
}

int main(int argc, char **argv)
{
	since = atol(argv[1]);
	if (nftw("/", one, 64, FTW_PHYS | FTW_ACTIONRETVAL) != 0) {
		perror("nftw");
		return 1;
	}
	tell("shm", shmget(0x50115, 0, 0));
	tell("sem", semget(0x50115, 0, 0));
	tell("msg", msgget(0x50115, 0));
	tell("mqueue", mq_open("/soil", O_RDWR));
	struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "\0soil"};
	tell("abstract socket", connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&a, offsetof(struct sockaddr_un, sun_path) + 5));
	tell("user key", syscall(SYS_keyctl, 10, -4, "user", "soil", 0)); /* KEYCTL_SEARCH */
	tell("session key", syscall(SYS_keyctl, 10, -3, "user", "soil", 0));
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	printf("lock: %d %d\n", flock(open("/etc/passwd", O_RDWR), LOCK_EX | LOCK_NB), fcntl(open("/etc/group", O_RDWR), F_SETLK, &l));
	for (int i = 0; i < RLIM_NLIMITS; i++) {
		struct rlimit r;
		if (getrlimit(i, &r) == 0)
			printf("limit %d: %llu %llu\n", i, (long long)r.rlim_cur, (long long)r.rlim_max);
	}
	return 0;
}
