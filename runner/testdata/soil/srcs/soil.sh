# Soils the workspace in every way that a build has, then waits to be told to go
# on, so that others can be looked at meanwhile.
try() { what=$1; shift; if sh -c "$*" 2>/dev/null; then echo "did $what"; else echo "refused $what"; fi; }

gcc -o soil soil.c && gcc -o sh.soil sh.c && gcc -shared -fPIC -o /usr/lib/soil.so preload.c || exit 9

try files 'for d in / /etc /usr/bin /usr/lib /var/lib /opt /root /home /srv /boot /tmp /var/tmp /run /dev/shm /quarry /quarry/home /dev; do echo soil >$d/soil || exit 1; done'
try user 'echo soil:x:0:0::/:/bin/sh >>/etc/passwd && echo soil:x:4711: >>/etc/group && echo soil:: >>/etc/shadow'
try cron 'mkdir -p /var/spool/cron/crontabs /etc/cron.d && echo "* * * * * root touch /soil" >/etc/cron.d/soil && cp /etc/cron.d/soil /var/spool/cron/crontabs/root'
try start 'mkdir -p /etc/init.d /etc/profile.d /lib/systemd/system && echo soil >/etc/init.d/soil && echo "export SOIL=1" >/etc/profile.d/soil.sh && cp /etc/profile.d/soil.sh /root/.profile && cp /etc/profile.d/soil.sh /root/.bashrc && echo SOIL=1 >>/etc/environment'
try deleted 'rm -rf /usr/share/doc /etc/issue /usr/bin/cmp'
try times 'touch -d 1999-09-09 /etc/hostname /etc /usr /usr/include/stdio.h'
try modes 'chmod 4755 /usr/bin/env && chmod 777 /etc /usr/bin && chown 4711:4711 /usr/lib'
try links 'ln -sf /tmp/soil /etc/localtime && mkfifo /usr/fifo && mv /usr/share/common-licenses /usr/share/soiled'
try libraries 'for l in $(find /lib/ /usr/lib/ -name "libz.so.1*" -o -name "libm.so.6" | head -3); do cp $l $l.old && rm $l && mv $l.old $l && printf soil >>$l; done'
try hosts 'echo 127.0.0.1 soil >>/etc/hosts; echo nameserver 127.0.0.1 >>/etc/resolv.conf'
try cgroup 'for f in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max; do [ -e $f ] && echo 1000 >$f && exit 0; done; exit 1'
# With version 1 that folder is no control group, but holds them.
try 'cgroup of its own' 'mkdir /sys/fs/cgroup/soil; for d in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do [ -e $d ] && mkdir ${d%/*}/soil && exit 0; done; exit 1'
try guest 'echo soil >>/.quarry/guest'
try device 'mknod /dev/soil b 8 0'
setsid sh -c 'trap "" HUP INT TERM QUIT USR1 USR2; while :; do sleep 1; done' </dev/null >/dev/null 2>&1 &
(sleep 100000 & exec sleep 100000) </dev/null >/dev/null 2>&1 &
./soil
# Last of all, since nothing is as it was from here on.
mv /usr/bin/make /usr/bin/make.real && cp sh.soil /usr/bin/make && echo "did make"
cp sh.soil /bin/sh.new && mv /bin/sh.new /bin/sh && echo "did sh"
echo /usr/lib/soil.so >/etc/ld.so.preload && echo "did preload"
make --version >/dev/null
[ -s /var/tmp/soil-trace ] && echo "did trace"
echo "soiled all"
until [ -e /quarry/go ]; do sleep 0.05; done
