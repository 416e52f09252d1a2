# shellcheck shell=bash
# What `up` has found and started, kept between runs; one `key=value` a line, read without being executed.

readonly STATE_FILE="$HOME_DIR/services.state"
readonly ENV_FILE="$HOME_DIR/services.env"

# `*_url` and `*_way` say what is used. The rest says what `up` itself started, which may be something else when a URL
# was named later; `down` goes by these alone. Pids are not among them: they lie in the servers' own pid files inside the
# recorded directories, so that a start that was interrupted can be stopped too.
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

# Written before each start and after each finding, so that an interrupted `up` leaves nothing that `down` cannot find.
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
        # Somebody else's server has no users of ours.
        if [[ $rabbitmq_url == "$rabbitmq_own_url" && -n $rabbitmq_producer_url ]]; then
            printf 'export KYHAN_SERVICES_PRODUCER_AMQP_URL=%q\n' "$rabbitmq_producer_url"
            printf 'export KYHAN_SERVICES_WORKER_AMQP_URL=%q\n' "$rabbitmq_worker_url"
            printf 'export KYHAN_SERVICES_OPS_AMQP_URL=%q\n' "$rabbitmq_ops_url"
        fi
    } | write_privately "$ENV_FILE"
}

# Whole or not at all, and readable by its owner alone: both files hold passwords.
write_privately() {
    local file=$1
    mkdir -p "$HOME_DIR"
    (umask 077 && cat >"$file.new") && mv -f "$file.new" "$file"
}

remove_state() {
    rm -f "$STATE_FILE" "$ENV_FILE" "$HOME_DIR"/*.new "$HOME_DIR/apt.log" "$HOME_DIR/compose.log" \
        "$HOME_DIR/rabbitmq-users.log"
    # Other tools keep things here too; only an empty folder goes.
    rmdir "$HOME_DIR" 2>/dev/null || true
}

# Two runs of `up` at once must not start two servers. The lock is held on this script itself, which needs no lock file
# to be left behind or removed under somebody's feet. Servers are started with descriptor 9 closed, or they would keep
# the lock for as long as they live.
take_lock() {
    command -v flock >/dev/null || return 0 # macOS has none; there two runs at once are not guarded against
    exec 9<"$ROOT/deploy/services"
    if ! flock --nonblock 9; then
        note "another deploy/services is at work; waiting for it"
        flock --timeout 600 9 || die "another deploy/services has been at work for ten minutes"
    fi
}
