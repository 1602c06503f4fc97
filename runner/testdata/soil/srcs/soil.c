/* Leaves behind everything in the kernel that a process can, or tries to. Each
   line says what came of one thing: "did" or "refused". */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

static void tell(const char *what, int ok)
{
	printf("%s %s%s%s\n", ok ? "did" : "refused", what, ok ? "" : ": ", ok ? "" : strerror(errno));
	fflush(stdout);
}

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	if (fd < 0)
		return 0;
	int ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

/* A process that its parent knows nothing of, and that only SIGKILL ends. It
   holds locks and a name in the abstract namespace. */
static void demon(const char *name)
{
	int ready[2];
	char c;
	if (pipe(ready))
		return;
	if (fork() == 0) {
		setsid();
		if (fork() != 0)
			_exit(0);
		for (int s = 1; s < NSIG; s++)
			signal(s, SIG_IGN);
		int fd = open("/etc/passwd", O_RDWR);
		int locked = flock(fd, LOCK_EX) == 0;
		struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
		locked = fcntl(open("/etc/group", O_RDWR), F_SETLK, &l) == 0 && locked;
		struct sockaddr_un a = {.sun_family = AF_UNIX};
		strcpy(a.sun_path + 1, name);
		int s = socket(AF_UNIX, SOCK_STREAM, 0);
		int bound = bind(s, (void *)&a, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)) == 0 && listen(s, 1) == 0;
		tell("lock files", locked);
		tell("abstract socket", bound);
		if (write(ready[1], "", 1) != 1)
			_exit(1);
		close(0), close(1), close(2);
		for (;;)
			pause();
	}
	if (read(ready[0], &c, 1) == 1)
		tell("leave a process", 1);
}

int main(void)
{
	int id = shmget(0x50115, 65536, IPC_CREAT | 0666);
	char *m = id < 0 ? (void *)-1 : shmat(id, 0, 0);
	tell("shm", m != (void *)-1 && strcpy(m, "soil"));
	id = semget(0x50115, 3, IPC_CREAT | 0666);
	struct sembuf up = {0, 7, 0};
	tell("sem", id >= 0 && semop(id, &up, 1) == 0);
	id = msgget(0x50115, IPC_CREAT | 0666);
	struct { long type; char text[8]; } msg = {1, "soil"};
	tell("msg", id >= 0 && msgsnd(id, &msg, sizeof msg.text, 0) == 0);
	mqd_t q = mq_open("/soil", O_CREAT | O_RDWR, 0666, NULL);
	tell("mqueue", q != (mqd_t)-1 && mq_send(q, "soil", 4, 0) == 0);
	int fd = shm_open("/soil", O_CREAT | O_RDWR, 0666);
	tell("devshm", fd >= 0 && write(fd, "soil", 4) == 4);
	demon("soil");

	tell("xattr", setxattr("/etc/passwd", "user.soil", "soil", 4, 0) == 0);
	tell("score of the guest", put("/proc/1/oom_score_adj", "1000"));
	tell("oom score", put("/proc/self/oom_score_adj", "999"));
	struct rlimit r = {100, 100};
	tell("ulimit", setrlimit(RLIMIT_NOFILE, &r) == 0);

	tell("mount", mount("soil", "/mnt", "tmpfs", 0, "") == 0);
	tell("bind mount", mount("/etc", "/mnt", NULL, MS_BIND, NULL) == 0);
	tell("remount", mount(NULL, "/proc", NULL, MS_REMOUNT, NULL) == 0);
	tell("unmount", umount2("/dev/shm", MNT_DETACH) == 0);
	tell("namespace", unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0);
	tell("hostname", sethostname("soil", 4) == 0);
	struct timeval t = {1, 0};
	tell("clock", settimeofday(&t, NULL) == 0);
	tell("sysctl kernel.shmmax", put("/proc/sys/kernel/shmmax", "4711"));
	tell("sysctl kernel.msgmnb", put("/proc/sys/kernel/msgmnb", "4711"));
	tell("sysctl kernel.sem", put("/proc/sys/kernel/sem", "1 2 3 4"));
	tell("sysctl fs.mqueue", put("/proc/sys/fs/mqueue/msg_max", "7"));
	tell("sysctl net", put("/proc/sys/net/core/somaxconn", "17"));
	tell("sysctl net.ipv4", put("/proc/sys/net/ipv4/ip_local_port_range", "2000 2001"));
	tell("core pattern", put("/proc/sys/kernel/core_pattern", "/tmp/soil"));
	/* Where keyrings are not refused they are the user namespace's. */
	tell("user key", syscall(SYS_add_key, "user", "soil", "soil", 4, -4) >= 0);
	tell("session key", syscall(SYS_add_key, "user", "soil", "soil", 4, -3) >= 0);
	return 0;
}
