# shellcheck shell=bash
# Messages to the user, and functions that start, recognise and stop processes.

say() { printf '%s\n' "$*"; }
note() { printf 'services: %s\n' "$*" >&2; }
die() {
    note "$*"
    exit 1
}

# bounded SECONDS COMMAND…: runs the command with a timeout, so that a server or a server's tool that never answers cannot hang the
# script. macOS has perl, but no timeout.
bounded() {
    if command -v timeout >/dev/null; then
        timeout -k 5 "$@"
    else
        perl -e 'alarm shift; exec @ARGV' "$@"
    fi
}

# wait_until SECONDS COMMAND…
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.2
    done
}

# is_ours PID MARKER: checks that PID is alive and is the server that we started, whose command line contains MARKER. The
# pid alone is not enough, because it may have been reused for another process.
is_ours() {
    local pid=$1 marker=$2
    [[ $pid =~ ^[0-9]+$ ]] && [[ $(command_line "$pid") == *"$marker"* ]]
}

is_gone() { ! is_ours "$@"; }

command_line() {
    if [[ -d /proc/self ]]; then
        { tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null || true
    else
        ps -ww -p "$1" -o command= 2>/dev/null || true
    fi
}

# stop_ours PID MARKER SIGNAL: sends SIGNAL, waits, then sends SIGKILL.
stop_ours() {
    local pid=$1 marker=$2 signal=$3
    is_ours "$pid" "$marker" || return 0
    kill -s "$signal" "$pid" 2>/dev/null || true
    wait_until 30 is_gone "$pid" "$marker" && return 0
    note "process $pid did not stop within 30 seconds; killing it"
    kill -s KILL "$pid" 2>/dev/null || true
    wait_until 5 is_gone "$pid" "$marker" || true
}

# The first line of a pid file, or nothing.
pid_in() {
    local pid=''
    { read -r pid <"$1"; } 2>/dev/null || true
    printf '%s' "$pid"
}

# start_detached DIRECTORY LOG COMMAND…: replaces the calling subshell with a process that survives a Ctrl-C in the
# terminal and the end of this script, and that holds none of this script's descriptors.
start_detached() {
    local directory=$1 log=$2
    shift 2
    local leave=(nohup)
    command -v setsid >/dev/null && leave=(setsid)
    cd "$directory" || exit 1
    exec "${leave[@]}" "$@" </dev/null >>"$log" 2>&1 9>&-
}

port_is_open() { (: <>"/dev/tcp/$1/$2") 2>/dev/null; }

# pick_port VARIABLE: picks a free port of 127.0.0.1. It lies below the range that systems use for outgoing connections
# (from 32768 on Linux), so that such a connection cannot take the port before the server does.
PICKED_PORTS=' '
pick_port() {
    local candidate
    while :; do
        candidate=$((20000 + RANDOM % 12000))
        [[ $PICKED_PORTS == *" $candidate "* ]] || port_is_open 127.0.0.1 "$candidate" || break
    done
    PICKED_PORTS+="$candidate "
    printf -v "$1" '%s' "$candidate"
}

random_hex() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

# Removes a directory that this script made. It refuses any other path, in case the state file is damaged.
remove_ours() {
    case "$1" in
        '') ;;
        "$HOME_DIR"/postgres | "$HOME_DIR"/rabbitmq | /var/tmp/kyhan-postgres.*) rm -rf -- "$1" ;;
        *) note "not removing $1: it is not a directory that deploy/services makes" ;;
    esac
}
