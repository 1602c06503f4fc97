# Writes all that a build can see of its workspace to a file.
set -e
exec 2>&1 >/quarry/home/probe
gcc -o probe probe.c
./probe "$SINCE" | LC_ALL=C sort
echo "== content"
# Of the rest, half a gigabyte, sizes and times have to do.
find / \( -path /proc -o -path /sys -o -path /dev -o -path /usr/share -o -path /usr/include -o -path /usr/lib/gcc -o -path '/quarry/home/probe*' \) -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 b2sum -l 128
echo "== environment"
env | LC_ALL=C sort
echo "== mounts"
sed -E 's/(lowerdir|upperdir|workdir)=[^, ]*//g' /proc/mounts | LC_ALL=C sort
echo "== processes"
for p in /proc/[0-9]*; do read -r name <$p/comm && echo "$name"; done
echo "== process"
grep -E '^(Cap|NoNewPrivs|Seccomp|Umask|Uid|Gid|Groups|Cpus_allowed|Mems_allowed|SigIgn|SigBlk)' /proc/self/status
cat /proc/self/oom_score_adj /proc/self/uid_map /proc/self/gid_map /proc/1/oom_score_adj
id; hostname; uname -a; ulimit -a
echo "== ipc"
cat /proc/sysvipc/* ; ls -lA /dev/shm /dev/mqueue
echo "== keys"
# Not key-users: it counts the containers of this user id, each of which has a
# session keyring of its own.
cat /proc/keys 2>&1 || :
echo "== locks"
wc -l </proc/locks
echo "== sockets"
# The guest's own shows which descriptor the daemon made it through.
awk 'NR > 1 { sub("/fd/[0-9]+/", "/fd/N/"); print $5, $6, $8 }' /proc/net/unix | LC_ALL=C sort
cat /proc/net/tcp /proc/net/tcp6 /proc/net/udp /proc/net/route /proc/net/dev 2>&1 || :
echo "== sysctl"
find /proc/sys/kernel/shm* /proc/sys/kernel/msg* /proc/sys/kernel/sem /proc/sys/kernel/*name /proc/sys/kernel/core_pattern /proc/sys/fs/mqueue /proc/sys/net -type f | LC_ALL=C sort | while read -r f; do
	v=$(cat "$f" 2>/dev/null) || v=refused
	echo "$f: $v"
done
echo "== control groups"
find /sys/fs/cgroup | LC_ALL=C sort
cat /proc/self/cgroup
for f in memory.max pids.max cpu.max memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us; do
	[ -e /sys/fs/cgroup/$f ] && echo "$f: $(cat /sys/fs/cgroup/$f)"
done
echo "== end"
