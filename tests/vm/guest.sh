#!/bin/sh
# What `cargo xtask vm` runs in a guest: gives it what tests expect of a machine, then runs a plan.
#
# usage: guest.sh DIR LABS
#
# DIR is the one folder that the guest and the host both write. DIR/plan.sh is a list of
#   entry N SECONDS FOLDER COMMAND…
# For entry N this leaves DIR/N.log, each line after the seconds since the guest's start, between a
# line "started" and a line "ended", and DIR/N.status, the command's exit status. DIR/booted appears before the first entry, DIR/done
# after the last. The host's files are the guest's, read-only; /run is the guest's own and empty,
# and what is written elsewhere is lost with the guest. LABS is where labs keep their logs: the guest's are in DIR/labs.

dir=$1 labs=$2
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

uptime() {
    read -r now _ </proc/uptime
}

stamped() {
    uptime
    echo "$now started"
    while IFS= read -r line || [ -n "$line" ]; do
        uptime
        printf '%s %s\n' "$now" "$line"
    done
    uptime
    echo "$now ended"
}

# Process 1 of the guest waits for this script alone. Who ends with children leaves them to a process that waits for all, or what
# is in a PID namespace would never be gone: PR_SET_CHILD_SUBREAPER of prctl(2), by its number on x86_64.
reaper='
    syscall(157, 36, 1, 0, 0, 0) == 0 or die "prctl: $!";
    my $child = fork() // die "fork: $!";
    if (!$child) { exec { $ARGV[0] } @ARGV; die "$ARGV[0]: $!"; }
    my $ended;
    do { $ended = wait() } until $ended == $child;
    exit($? & 127 ? 128 + ($? & 127) : $? >> 8);
'

entry() {
    number=$1 limit=$2 folder=$3
    shift 3
    {
        cd "$folder" && timeout --kill-after=5 "$limit" perl -e "$reaper" -- "$@"
        echo $? >"/run/$number.status"
    } </dev/null 2>&1 | stamped >"$dir/$number.log"
    # Under another name first: the host never sees half of it.
    cp "/run/$number.status" "$dir/$number.status.new"
    mv "$dir/$number.status.new" "$dir/$number.status"
}

mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/netns "$dir/labs"
mount --bind "$dir/labs" "$labs"
ip link set lo up
# Modules of tunnels would put links of theirs into every new namespace, with the numbers that tests give theirs.
echo 1 >/proc/sys/net/core/fb_tunnels_only_for_init_net

# Nothing here is fast: tests of a rate ask for none.
export COIL_EMULATED=1

uname -r >"$dir/release"
uptime
echo "$now" >"$dir/booted"
. "$dir/plan.sh"
: >"$dir/done"
