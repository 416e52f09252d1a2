# shellcheck shell=bash
# The two servers of docker-compose.yml, in a Compose project of their own: separate from a fleet started by hand from
# the same file, on free ports, and with data that `down` removes.

readonly COMPOSE_USER=kyhan
readonly COMPOSE_VALUES="$HOME_DIR/compose.env"

compose_available() {
    command -v docker >/dev/null && bounded 15 docker info >/dev/null 2>&1 && bounded 15 docker compose version >/dev/null 2>&1
}

# compose_up SERVICE: starts only that service and waits until its health check passes.
compose_up() {
    compose_prepare || return 1
    note "starting $1 with Docker Compose"
    if ! compose up --detach --wait "$1" >"$HOME_DIR/compose.log" 2>&1; then
        note "Docker Compose cannot start $1: $(tail -n 3 "$HOME_DIR/compose.log" | tr '\n' ' ')"
        return 1
    fi
}

# The variables that docker-compose.yml requires, whichever of its services is started.
readonly COMPOSE_PASSWORDS='POSTGRES_PASSWORD POSTGRES_OWNER_PASSWORD POSTGRES_PRODUCER_PASSWORD POSTGRES_WORKER_PASSWORD
    POSTGRES_OPS_PASSWORD POSTGRES_ORDER_SYSTEM_PASSWORD
    RABBITMQ_PASSWORD RABBITMQ_PRODUCER_PASSWORD RABBITMQ_WORKER_PASSWORD RABBITMQ_OPS_PASSWORD'

# Writes the values that docker-compose.yml needs. They are chosen once, so that a later `up` finds the same containers. Values that
# an older file lacks are added.
compose_prepare() {
    local postgres rabbitmq management name
    if [[ ! -r $COMPOSE_VALUES ]]; then
        # Compose projects are global to the daemon; the folder's path in the name separates two checkouts.
        compose_project="kyhan-services-$(cksum <<<"$HOME_DIR" | cut -d ' ' -f 1)"
        save_state
        pick_port postgres
        pick_port rabbitmq
        pick_port management
        write_privately "$COMPOSE_VALUES" <<VALUES
POSTGRES_USER=$COMPOSE_USER
POSTGRES_PORT=$postgres
RABBITMQ_USER=$COMPOSE_USER
RABBITMQ_PORT=$rabbitmq
RABBITMQ_MANAGEMENT_PORT=$management
VALUES
    fi
    {
        cat "$COMPOSE_VALUES"
        for name in $COMPOSE_PASSWORDS; do
            grep -q "^$name=" "$COMPOSE_VALUES" || printf '%s=%s\n' "$name" "$(random_hex)"
        done
    } | write_privately "$COMPOSE_VALUES"
}

compose_value() { sed -n "s/^$1=//p" "$COMPOSE_VALUES"; }

# The values are passed in the environment, which overrides a .env beside docker-compose.yml.
compose() (
    set -a
    # shellcheck source=/dev/null
    source "$COMPOSE_VALUES"
    # Long enough to pull the images.
    bounded 900 docker compose --project-name "$compose_project" --project-directory "$ROOT" \
        --file "$ROOT/docker-compose.yml" "$@" 9>&-
)

compose_remove() {
    [[ -n $compose_project && -r $COMPOSE_VALUES ]] || return 0
    # Compose requires all variables of the file for `down`, too.
    compose_prepare
    compose down --volumes --timeout 30 >"$HOME_DIR/compose.log" 2>&1 ||
        die "Docker Compose cannot remove project $compose_project: $(tail -n 3 "$HOME_DIR/compose.log" | tr '\n' ' ')"
    rm -f "$COMPOSE_VALUES" "$HOME_DIR/compose.log"
    say "Docker Compose project $compose_project stopped and removed"
}
