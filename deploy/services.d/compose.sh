# shellcheck shell=bash
# The two servers of docker-compose.yml, in a Compose project of their own: apart from a fleet started by hand from the
# same file, on free ports, and with data that `down` removes.

readonly COMPOSE_USER=kyhan
readonly COMPOSE_VALUES="$HOME_DIR/compose.env"

compose_available() {
    command -v docker >/dev/null && bounded 15 docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1
}

# compose_up SERVICE: starts that service alone and waits until its health check passes.
compose_up() {
    compose_prepare || return 1
    note "starting $1 with Docker Compose"
    if ! compose up --detach --wait "$1" >"$HOME_DIR/compose.log" 2>&1; then
        note "Docker Compose cannot start $1: $(tail -n 3 "$HOME_DIR/compose.log" | tr '\n' ' ')"
        return 1
    fi
}

# The values that docker-compose.yml asks for. Chosen once, so that a later `up` finds the same containers.
compose_prepare() {
    [[ ! -r $COMPOSE_VALUES ]] || return 0
    # Compose projects are global to the daemon; the folder's path keeps those of two checkouts apart.
    compose_project="kyhan-services-$(cksum <<<"$HOME_DIR" | cut -d ' ' -f 1)"
    save_state
    local postgres rabbitmq management
    pick_port postgres
    pick_port rabbitmq
    pick_port management
    write_privately "$COMPOSE_VALUES" <<VALUES
POSTGRES_USER=$COMPOSE_USER
POSTGRES_PASSWORD=$(random_hex)
POSTGRES_PORT=$postgres
RABBITMQ_USER=$COMPOSE_USER
RABBITMQ_PASSWORD=$(random_hex)
RABBITMQ_PORT=$rabbitmq
RABBITMQ_MANAGEMENT_PORT=$management
VALUES
}

compose_value() { sed -n "s/^$1=//p" "$COMPOSE_VALUES"; }

# The values go through the environment, which wins over a .env that somebody keeps beside docker-compose.yml.
compose() (
    set -a
    # shellcheck source=/dev/null
    source "$COMPOSE_VALUES"
    exec docker compose --project-name "$compose_project" --project-directory "$ROOT" \
        --file "$ROOT/docker-compose.yml" "$@" 9>&-
)

compose_remove() {
    [[ -n $compose_project && -r $COMPOSE_VALUES ]] || return 0
    compose down --volumes --timeout 30 >"$HOME_DIR/compose.log" 2>&1 ||
        die "Docker Compose cannot remove project $compose_project: $(tail -n 3 "$HOME_DIR/compose.log" | tr '\n' ' ')"
    rm -f "$COMPOSE_VALUES" "$HOME_DIR/compose.log"
    say "Docker Compose project $compose_project stopped and removed"
}
