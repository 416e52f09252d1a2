# shellcheck shell=bash
# Words to the user, and the starting, recognising and stopping of processes.

say() { printf '%s\n' "$*"; }
note() { printf 'services: %s\n' "$*" >&2; }
die() {
    note "$*"
    exit 1
}

# bounded SECONDS COMMAND…: a server, or a server's tool, that never answers must not hang the whole command. macOS has perl, but no
# timeout.
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

# Whether PID lives and is the server we started: its command line carries MARKER. A pid alone proves nothing, since
# the number may have been given to somebody else's process meanwhile.
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

# stop_ours PID MARKER SIGNAL: asks with SIGNAL, waits, then insists.
stop_ours() {
    local pid=$1 marker=$2 signal=$3
    is_ours "$pid" "$marker" || return 0
    kill -s "$signal" "$pid" 2>/dev/null || true
    wait_until 30 is_gone "$pid" "$marker" && return 0
    note "process $pid did not stop within 30 seconds and is killed"
    kill -s KILL "$pid" 2>/dev/null || true
    wait_until 5 is_gone "$pid" "$marker" || true
}

# The first line of a pid file, or nothing.
pid_in() {
    local pid=''
    { read -r pid <"$1"; } 2>/dev/null || true
    printf '%s' "$pid"
}

# start_detached DIRECTORY LOG COMMAND…: replaces the calling subshell with a process that neither a Ctrl-C in the
# terminal nor the end of this script reaches, and that holds none of this script's descriptors.
start_detached() {
    local directory=$1 log=$2
    shift 2
    local leave=(nohup)
    command -v setsid >/dev/null && leave=(setsid)
    cd "$directory" || exit 1
    exec "${leave[@]}" "$@" </dev/null >>"$log" 2>&1 9>&-
}

port_is_open() { (: <>"/dev/tcp/$1/$2") 2>/dev/null; }

# pick_port VARIABLE: a port of 127.0.0.1 on which nothing listens. They come from below the range that systems hand out
# for outgoing connections (from 32768 on Linux), so that no stray connection takes one before the server does.
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

# Removes a directory of ours, and refuses any path that cannot be one, whatever a damaged state file says.
remove_ours() {
    case "$1" in
        '') ;;
        "$HOME_DIR"/postgres | "$HOME_DIR"/rabbitmq | /var/tmp/kyhan-postgres.*) rm -rf -- "$1" ;;
        *) note "$1 is not a directory that deploy/services makes; left as it is" ;;
    esac
}
