#!/bin/sh
# Boots this host's systemd as process 1 of namespaces of its own, over a copy-on-write view of
# this host's files. Called by booted.rs as root: `boot.sh FOLDER`, in which
#   root      is an empty folder
#   checkout  becomes /root/skep
# Writes the process id of systemd to FOLDER/pid, and ends when that process does.
set -eu

# What a service manager expects of a container (https://systemd.io/CONTAINER_INTERFACE): the
# kernel's settings can be read, those of this network written.
enter() {
    # This proc(5) is still the one outside.
    read -r pid rest < /proc/self/stat
    echo "$pid" > "$folder/pid"
    mount --make-rprivate /
    mount -t tmpfs tmpfs "$folder/root"
    cd "$folder/root"
    mkdir upper work new
    mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work new
    cd new
    mount -t proc proc proc
    mount --bind proc/sys proc/sys
    mount --bind proc/sys/net proc/sys/net
    mount -o remount,bind,ro proc/sys
    mount -t sysfs -o ro sysfs sys
    mount_groups
    mount -t tmpfs tmpfs run
    mount -t tmpfs tmpfs tmp
    chmod 1777 tmp
    mount -t tmpfs -o mode=755 tmpfs dev
    mkdir dev/pts dev/shm run/host-root
    mount -t tmpfs tmpfs dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    for device in null zero full random urandom tty; do
        : > "dev/$device"
        mount --bind "/dev/$device" "dev/$device"
    done
    mkdir -p root/skep
    mount --bind "$folder/checkout" root/skep
    # What was installed on this host does not start, nor does a skep of its own stand in the way.
    rm -rf etc/systemd/system/* etc/sysctl.d/* etc/skep etc/letsencrypt var/lib/skep usr/local/bin/skep
    ip link set lo up
    pivot_root . run/host-root
    umount -l /run/host-root
    exec env -i PATH="$PATH" container=skep-test \
        /lib/systemd/systemd --system --unit=sysinit.target --log-target=journal --show-status=no
}

# The control groups as this namespace has them: its own are the root.
mount_groups() {
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        mount -t cgroup2 cgroup2 sys/fs/cgroup
        return
    fi
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    while IFS=: read -r _ controllers _; do
        case $controllers in
            '') name=unified type=cgroup2 options=rw ;;
            name=*) name=${controllers#name=} type=cgroup options=none,$controllers ;;
            *) name=$controllers type=cgroup options=$controllers ;;
        esac
        mkdir "sys/fs/cgroup/$name"
        mount -t "$type" -o "$options" "$type" "sys/fs/cgroup/$name"
    done < /proc/self/cgroup
}

# One group in each hierarchy, so that nothing is left in those of this host.
groups() {
    while IFS=: read -r _ controllers path; do
        case $controllers in
            '') for top in /sys/fs/cgroup /sys/fs/cgroup/unified; do
                    [ ! -e "$top/cgroup.controllers" ] || echo "$top$path/skep-test-$$"
                done ;;
            name=*) echo "/sys/fs/cgroup/${controllers#name=}$path/skep-test-$$" ;;
            *) echo "/sys/fs/cgroup/$controllers$path/skep-test-$$" ;;
        esac
    done < /proc/self/cgroup
}

folder=$1
if [ "${2-}" = enter ]; then
    enter
fi

groups=$(groups)
for group in $groups; do
    mkdir "$group"
    # A group of the cpuset hierarchy takes no process before it has these.
    if [ -e "$group/cpuset.cpu_exclusive" ]; then
        cat "$group/../cpuset.cpus" > "$group/cpuset.cpus"
        cat "$group/../cpuset.mems" > "$group/cpuset.mems"
    fi
done
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
# The groups are entered by a shell of its own: this one stays outside, and removes them.
sh -c 'for group in $2; do echo $$ > "$group/cgroup.procs"; done
    exec unshare --pid --fork --kill-child --mount --net --uts --ipc --cgroup sh "$0" "$1" enter' \
    "$0" "$folder" "$groups" &
unshare=$!
trap 'kill -KILL $unshare' TERM
status=0
wait "$unshare" || status=$?
for group in $groups; do
    find "$group" -depth -type d -exec rmdir {} +
done
exit "$status"
