/**
 * The scripts inside the guest. They run under busybox; what must work while the file systems are frozen reads programs
 * from them (reading is allowed) and writes only to /run, which is a tmpfs.
 */

/** The virtio port of the guest's shell. Not a serial port: under load those lose characters. */
export const SHELL_PORT = 'org.stillpoint.lab.0';

const BEFORE_ROOT = `#!/bin/sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sysfs /sys
while read -r module; do insmod "/modules/$module"; done </modules/order
if grep -q lab.probe /proc/cmdline; then echo LAB-PROBE-OK >/dev/console; poweroff -f; fi
i=0; while [ ! -b /dev/vda2 ] && [ $i -lt 200 ]; do usleep 50000; i=$((i+1)); done
mount -t ext4 /dev/vda2 /newroot
for folder in dev proc sys; do mount --move /$folder /newroot/$folder; done
exec switch_root /newroot /sbin/init
`;

const INIT = `#!/bin/sh
export PATH=/bin:/sbin:/usr/sbin:/usr/bin
mount -t tmpfs tmpfs /run
mkdir -p /run/lock /run/lab /run/hook /run/writer /dev/virtio-ports
mount -t vfat /dev/vda1 /boot/efi
[ -b /dev/vdb ] && mount -t ext4 /dev/vdb /data
# Cinder's volumes have their own serials, the lab's other disks LAB and their name.
for disk in /sys/block/vd[c-z]; do
  name=\${disk##*/}
  case $(cat $disk/serial 2>/dev/null) in
    LABVDC) mount -t ext4 /dev/vdc /net;;
    ?*) mkdir -p /mnt/$name; mount -t ext4 /dev/$name /mnt/$name;;
  esac
done
for port in /sys/class/virtio-ports/vport*; do
  [ -e $port/name ] && name=$(cat $port/name) && [ -n "$name" ] && ln -sf ../\${port##*/} /dev/virtio-ports/$name
done
hostname lab
lab-agent </dev/null >/dev/null 2>&1 &
lab-writer </dev/null >/dev/null 2>&1 &
echo "LAB-READY uptime=$(cut -d' ' -f1 /proc/uptime)" >/dev/console
exec lab-shell
`;

// One line in: 'run <id> <the command, escaped for printf %b>'. Out: '+<id> <base64>' for each piece of its output, short enough for the port to take it in one
// piece from each of many writers, then '@<id> <exit code>'. Every command runs beside the others: one that hangs on a frozen file system must not take the
// shell with it. Builtins wherever there is one: under TCG a process costs milliseconds of a processor that the tests need too.
const SHELL = `#!/bin/sh
mkfifo /run/lab/never; exec 3<>/run/lab/never
# A virtio port can be opened only once.
exec 0<>/dev/virtio-ports/${SHELL_PORT} 1>&0 2>/dev/null
command() {
  own=/run/lab/$1
  printf '%b' "$2" >$own.sh
  ( . $own.sh ) </dev/null >$own.out 2>&1 3>&-
  code=$?
  [ -s $own.out ] && base64 -w 16000 $own.out >$own.text && while read -r piece; do echo "+$1 $piece"; done <$own.text
  echo "@$1 $code"
  rm -f $own.sh $own.out $own.text
}
while :; do
  while IFS=' ' read -r verb id body; do [ "$verb" = run ] && command "$id" "$body" & done
  # The end of the input only says that nobody is connected on the host.
  read -t 0.1 tick <&3
done
`;

// A killed guest agent comes back, unless /run/no-ga exists.
const AGENT = `#!/bin/sh
port=/dev/virtio-ports/org.qemu.guest_agent.0
while :; do
  [ -e $port ] && [ ! -e /run/no-ga ] &&
    qemu-ga -m virtio-serial -p $port -F/etc/qemu/fsfreeze-hook -t /run -f /run/qemu-ga.pid -l /run/qemu-ga.log
  usleep 200000
done
`;

const HOOK = `#!/bin/sh
log() { read -r uptime idle </proc/uptime; echo "$uptime $1 $2" >>/run/hook/log; }
log $1 begin
[ -e /run/hook/$1-sleep ] && sleep $(cat /run/hook/$1-sleep)
if [ -e /run/hook/$1-fail ]; then log $1 fail; exit 3; fi
log $1 end
`;

// The number goes to / first, to /data second and then to the volumes on Ceph, each in place and synced (the file has the attribute S where the lab made the
// disk): whatever instant is cut, each holds the same number as the one before it or one less, and the last at most one less than the first. The files that
// come and go make the file systems' metadata busy, so that a cut which was not frozen can be told by fsck.
const WRITER = `#!/bin/sh
trap 'touch /run/writer/stopped; exit 0' TERM
mkfifo /run/writer/never; exec 3<>/run/writer/never
number=0
places=
for place in /data /mnt/*; do [ -d $place/writer ] && places="$places $place"; done
put() {
  case $1 in
    /mnt/*) echo $text | dd of=$1/writer/number bs=11 conv=notrunc,fsync 2>/dev/null;;
    *) echo $text 1<>$1/writer/number;;
  esac
}
churn() { echo $number >>$1/writer/log; echo $number >$1/writer/file$((number % 64)); : >$1/writer/file$(((number + 32) % 64)); }
while :; do
  number=$((number + 1))
  text=000000000$number; while [ \${#text} -gt 10 ]; do text=\${text#0}; done
  for place in '' $places; do put $place; done
  for place in '' $places; do churn $place; done
  [ $((number % 2048)) = 0 ] && for place in '' $places; do : >$place/writer/log; done
  echo $number >/run/writer/number
  pause=0.1; [ -e /run/writer/pause ] && read -r pause </run/writer/pause
  read -t $pause tick <&3
done
`;

// Asks the kernel and not the guest agent: who writes to a frozen file system waits in percpu_rwsem_wait until it is thawed.
// One waiting probe a file system is enough, and it is used again while it waits. A probe may end at any line of this: one that has ended, though its parent
// (by then the shell of process 1, which may be waiting for its next line) has not taken notice yet, found its file system thawed.
const FROZEN = `#!/bin/sh
mounts=
while read -r device mount rest; do
  case $mount in /|/data|/net|/mnt/*) case " $mounts " in *" $mount "*) ;; *) mounts="$mounts $mount";; esac;; esac
done </proc/mounts
probe_of() { case $1 in /) probe=/run/lab/probe-root;; *) probe=/run/lab/probe-\${1##*/};; esac; pid=; { read -r pid <$probe; } 2>/dev/null; }
lives() {
  state=
  { read -r number name state rest </proc/$pid/stat; } 2>/dev/null
  case $state in ''|Z|X) return 1;; esac
}
for mount in $mounts; do
  probe_of $mount
  if [ -z "$pid" ] || ! lives; then
    ( echo >$mount/.lab-probe ) </dev/null >/dev/null 2>&1 &
    echo $! >$probe
  fi
done
waiting=$mounts
while [ -n "$waiting" ]; do
  usleep 5000
  left=
  for mount in $waiting; do
    probe_of $mount
    lives || continue
    # No line end in there, so read says that it failed.
    at=; { read -r at </proc/$pid/wchan; } 2>/dev/null
    case $at in percpu_rwsem_wait*) echo $mount;; *) left="$left $mount";; esac
  done
  waiting=$left
done
`;

const POWEROFF = `#!/bin/sh
touch /run/no-ga
for name in lab-writer; do pids=$(pidof $name) && kill $pids; done
i=0; while [ ! -e /run/writer/stopped ] && [ $i -lt 100 ]; do usleep 20000; i=$((i+1)); done
[ -e /run/qemu-ga.pid ] && kill $(cat /run/qemu-ga.pid)
sync
umount /net /data /boot/efi /mnt/*
mount -o remount,ro /
poweroff -f
`;

/** The guest's root file system: path -> text of an executable script. */
export const ROOT_SCRIPTS: Readonly<Record<string, string>> = {
  'sbin/init': INIT,
  'bin/lab-shell': SHELL,
  'bin/lab-agent': AGENT,
  'bin/lab-writer': WRITER,
  'bin/lab-frozen': FROZEN,
  'sbin/shutdown': POWEROFF,
  'etc/qemu/fsfreeze-hook': HOOK,
};

/** The folders of the guest's root file system that hold nothing at first. */
export const ROOT_FOLDERS = [
  ...[
    'bin',
    'sbin',
    'dev',
    'proc',
    'sys',
    'run',
    'tmp',
    'data',
    'net',
    'boot/efi',
    'usr/sbin',
    'usr/bin',
    'writer',
    'mnt',
  ],
  ...['etc/qemu', 'lib64', 'lib/x86_64-linux-gnu', 'var/log', 'root'],
] as const;

/** The script that runs before the root file system is there. */
export const INITRAMFS_INIT = BEFORE_ROOT;
