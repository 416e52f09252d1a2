# shellcheck shell=bash
# The state that `up` keeps between runs: what it found and started. One `key=value` per line, read without executing it.

readonly STATE_FILE="$HOME_DIR/services.state"
readonly ENV_FILE="$HOME_DIR/services.env"

# `*_url` and `*_way` are the servers in use. The other keys are what `up` itself started, which can differ if a URL was
# named later; `down` uses only these. Pids are not recorded: they are in the servers' own pid files inside the recorded
# directories, so that an interrupted start can be stopped too.
readonly STATE_KEYS='postgres_way postgres_url postgres_dir postgres_own_url
    rabbitmq_way rabbitmq_url rabbitmq_dir rabbitmq_own_url rabbitmq_node rabbitmq_epmd_port
    rabbitmq_producer_url rabbitmq_worker_url rabbitmq_ops_url compose_project'

postgres_way='' postgres_url='' postgres_dir='' postgres_own_url=''
rabbitmq_way='' rabbitmq_url='' rabbitmq_dir='' rabbitmq_own_url='' rabbitmq_node='' rabbitmq_epmd_port=''
rabbitmq_producer_url='' rabbitmq_worker_url='' rabbitmq_ops_url='' compose_project=''

load_state() {
    [[ -r $STATE_FILE ]] || return 0
    local line key
    while IFS= read -r line; do
        key=${line%%=*}
        is_state_key "$key" && printf -v "$key" '%s' "${line#*=}"
    done <"$STATE_FILE"
    return 0
}

is_state_key() {
    local key
    for key in $STATE_KEYS; do
        [[ $key == "$1" ]] && return 0
    done
    return 1
}

# Written before each start and after each server that is found, so that `down` can clean up after an interrupted `up`.
save_state() {
    local key
    for key in $STATE_KEYS; do
        printf '%s=%s\n' "$key" "${!key}"
    done | write_privately "$STATE_FILE"
}

write_env() {
    {
        printf '# Written by deploy/services up.\n'
        printf 'export KYHAN_DATABASE_URL=%q\n' "$postgres_url"
        printf 'export KYHAN_AMQP_URL=%q\n' "$rabbitmq_url"
        # A server that this script did not start does not have our users.
        if [[ $rabbitmq_url == "$rabbitmq_own_url" && -n $rabbitmq_producer_url ]]; then
            printf 'export KYHAN_SERVICES_PRODUCER_AMQP_URL=%q\n' "$rabbitmq_producer_url"
            printf 'export KYHAN_SERVICES_WORKER_AMQP_URL=%q\n' "$rabbitmq_worker_url"
            printf 'export KYHAN_SERVICES_OPS_AMQP_URL=%q\n' "$rabbitmq_ops_url"
        fi
    } | write_privately "$ENV_FILE"
}

# Replaces the file atomically, readable only by its owner: both files contain passwords.
write_privately() {
    local file=$1
    mkdir -p "$HOME_DIR"
    (umask 077 && cat >"$file.new") && mv -f "$file.new" "$file"
}

remove_state() {
    rm -f "$STATE_FILE" "$ENV_FILE" "$HOME_DIR"/*.new "$HOME_DIR/apt.log" "$HOME_DIR/compose.log" \
        "$HOME_DIR/rabbitmq-users.log"
    # Other tools keep files here too, so the folder is removed only if it is empty.
    rmdir "$HOME_DIR" 2>/dev/null || true
}

# Two runs of `up` at once must not start two servers. The lock is held on the script itself, so there is no lock file to
# leave behind or to remove while it is in use. Servers are started with descriptor 9 closed; otherwise they would hold
# the lock for as long as they run.
take_lock() {
    command -v flock >/dev/null || return 0 # macOS has no flock; there two runs at once are not prevented
    exec 9<"$ROOT/deploy/services"
    if ! flock --nonblock 9; then
        note "waiting for another deploy/services to finish"
        flock --timeout 600 9 || die "another deploy/services has been running for ten minutes"
    fi
}
