# shellcheck shell=bash
# PostgreSQL: the ways to come by one. Each `postgres_…` way returns 0 with postgres_url and postgres_way set and saved.

postgres_named() {
    local named=${KYHAN_DATABASE_URL:-}
    # A shell that evaluated our own export lines names our own server: then it is ours to start again.
    [[ -n $named && $named != "$postgres_own_url" ]] || return 1
    postgres_check "$named" ||
        die "KYHAN_DATABASE_URL names $(masked "$named"), which cannot be used: $ANSWER. Correct it, or unset it to have a server found."
    ((ANSWER_CODE == 0)) || note "KYHAN_DATABASE_URL: $ANSWER"
    postgres_use "$named" 'named by KYHAN_DATABASE_URL'
}

postgres_own() {
    [[ -n $postgres_own_url ]] || return 1
    if [[ -z $postgres_dir ]]; then
        postgres_compose_up
    elif postgres_check "$postgres_own_url"; then
        postgres_use "$postgres_own_url" "started privately in $postgres_dir"
    else
        note "the private PostgreSQL does not answer; starting it again with the same data"
        postgres_launch
    fi
}

postgres_standard() {
    [[ ${KYHAN_SERVICES_SKIP_STANDARD_PORTS:-} != 1 ]] || return 1
    local role url reason='' password=''
    [[ -n ${PGPASSWORD:-} ]] && password=":$(encoded "$PGPASSWORD")"
    for role in ${PGUSER:+"$PGUSER"} postgres "$(id -un)"; do
        url="postgres://$(encoded "$role")$password@127.0.0.1:5432/postgres"
        if postgres_check "$url" && ((ANSWER_CODE == 0)); then
            postgres_use "$url" 'found on its standard port'
            return
        fi
        reason=${reason:-$ANSWER}
        ((ANSWER_CODE > 2)) || break # no PostgreSQL at all, so no other role will do better
    done
    ((ANSWER_CODE == 1)) || note "a server on 127.0.0.1:5432 is left alone: $reason"
    return 1
}

postgres_compose() {
    compose_available && postgres_compose_up
}

postgres_compose_up() {
    compose_up postgres || return 1
    postgres_own_url="postgres://$COMPOSE_USER:$(compose_value POSTGRES_PASSWORD)@127.0.0.1:$(compose_value POSTGRES_PORT)/postgres"
    wait_until 30 postgres_check "$postgres_own_url" || {
        note "PostgreSQL in Docker Compose cannot be used: $ANSWER"
        return 1
    }
    postgres_use "$postgres_own_url" 'started with Docker Compose'
}

postgres_private() {
    postgres_binaries >/dev/null && postgres_create && postgres_launch
}

postgres_installed() {
    ! postgres_binaries >/dev/null && install_with_apt postgresql && postgres_private
}

postgres_use() {
    postgres_url=$1 postgres_way=$2
    save_state
    say "$(postgres_name) at $(masked "$postgres_url"), $postgres_way"
}

# With its version, unless the last check could not learn it.
postgres_name() {
    if ((ANSWER_CODE == 0)); then printf 'PostgreSQL %s' "$ANSWER"; else printf PostgreSQL; fi
}

# Whether the server that URL names can be used. Sets ANSWER to its version or to what is wrong, and ANSWER_CODE as
# postgres-answers does: a role without the right to create databases and a login that could not be tried still pass.
postgres_check() {
    ANSWER_CODE=6
    { parse_url "$1" 5432 && [[ $URL_SCHEME == postgres || $URL_SCHEME == postgresql ]]; } || {
        ANSWER='it is not of the form postgres://user:password@host:port/database'
        return 1
    }
    local user=${URL_USER:-$(id -un)} sslmode
    sslmode=$(query_value sslmode)
    ANSWER_CODE=0
    ANSWER=$(HOST=$URL_HOST PORT=$URL_PORT USER=$user PASSWORD=$URL_PASSWORD DATABASE=${URL_PATH:-$user} \
        PGSSLMODE=${sslmode:-prefer} PGSSLROOTCERT=$(query_value sslrootcert) \
        bounded 15 "$PARTS/postgres-answers") || ANSWER_CODE=$?
    ANSWER=${ANSWER:-it does not answer within 15 seconds}
    case $ANSWER_CODE in
        0 | 4 | 5) return 0 ;;
        *) return 1 ;;
    esac
}

# The directory of the newest PostgreSQL server on this machine. Debian keeps it out of PATH.
postgres_binaries() {
    local directory
    while IFS= read -r directory; do
        if [[ -x $directory/initdb && -x $directory/postgres && -x $directory/pg_ctl ]]; then
            printf '%s' "$directory"
            return 0
        fi
    done < <(
        printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql@*/bin \
            /usr/local/opt/postgresql@*/bin | sort -rV
        dirname -- "$(command -v initdb || true)"
    )
    return 1
}

# A new cluster, in a directory that the server's user can reach.
postgres_create() {
    local bin password
    bin=$(postgres_binaries) || return 1
    # Recorded but without a URL: an earlier initdb was interrupted halfway.
    [[ -z $postgres_dir ]] || remove_ours "$postgres_dir"
    postgres_make_directory || return 1
    password=$(random_hex)
    # A password, although it listens on 127.0.0.1 alone: with trust, any user of this machine could run programs as the
    # owner of this server.
    # It travels by pipe and file, never as an argument that `ps` would show.
    if ! printf '%s\n' "$password" | as_postgres_user bash -c 'umask 077; cat >"$1"' - "$postgres_dir/password" ||
        ! as_postgres_user "$bin/initdb" --pgdata="$postgres_dir/data" --username=postgres --encoding=UTF8 --no-locale \
            --auth=scram-sha-256 --pwfile="$postgres_dir/password" >"$postgres_dir/initdb.log" 2>&1; then
        note "initdb failed: $(tail -n 3 "$postgres_dir/initdb.log" | tr '\n' ' ')"
        return 1
    fi
    rm -f "$postgres_dir/password"
    postgres_settings | as_postgres_user bash -c 'cat >>"$1"' - "$postgres_dir/data/postgresql.conf" || return 1
    postgres_own_url="postgres://postgres:$password@127.0.0.1:5432/postgres"
}

postgres_settings() {
    cat <<'CONF'

# Added by deploy/services
listen_addresses = '127.0.0.1'
# No Unix socket: its path may be no longer than 107 bytes, which a checkout deep in a tree exceeds.
unix_socket_directories = ''
# Every test has a database and a pool of its own, and they run side by side.
max_connections = 300
# As in production: what is measured and killed here must hold there.
fsync = on
full_page_writes = on
synchronous_commit = on
# The default of 128 MB makes sessions write each other's pages out; the default of 1 GB of log forces a checkpoint in the middle
# of a burst, and each page that changes after one is logged whole.
shared_buffers = 512MB
max_wal_size = 4GB
checkpoint_timeout = 15min
CONF
}

# Sets and saves postgres_dir. Where the server's user cannot reach the checkout (root's home, say) the data goes to
# /var/tmp, not /tmp, which may lie in memory.
postgres_make_directory() {
    postgres_dir="$HOME_DIR/postgres"
    save_state
    mkdir -p "$postgres_dir" && postgres_own_directory || return 1
    as_postgres_user test -w "$postgres_dir" && return 0
    rmdir "$postgres_dir"
    postgres_dir=$(mktemp -d /var/tmp/kyhan-postgres.XXXXXX) || return 1
    save_state
    postgres_own_directory
}

postgres_own_directory() {
    chmod 700 "$postgres_dir"
    ((EUID != 0)) || chown "$(postgres_user)" "$postgres_dir"
}

# PostgreSQL refuses to run as root.
postgres_user() {
    if id postgres >/dev/null 2>&1; then printf postgres; else printf nobody; fi
}

as_postgres_user() (
    # pg_ctl wants a working directory that its user may enter.
    cd / || exit 1
    if ((EUID != 0)); then
        bounded 300 "$@"
    elif command -v setpriv >/dev/null; then
        bounded 300 setpriv --reuid="$(postgres_user)" --regid="$(id -g "$(postgres_user)")" --clear-groups -- "$@"
    else
        bounded 300 runuser -u "$(postgres_user)" -- "$@"
    fi
)

# Starts the private cluster, on its former port if that is still free, and waits until it answers. More than one try:
# a port can be taken between the choice and the start, and after a kill -9 the last children of the old server need a
# moment to leave.
postgres_launch() {
    local bin try
    bin=$(postgres_binaries) || die "the private PostgreSQL's program is gone; reinstall it, or run deploy/services down"
    for try in 1 2 3 4 5; do
        postgres_running || postgres_start "$bin" "$try"
        if wait_until 15 postgres_settled && postgres_check "$postgres_own_url"; then
            postgres_use "$postgres_own_url" "started privately in $postgres_dir"
            return 0
        fi
        sleep 1
    done
    note "the private PostgreSQL does not start: $(tail -n 3 "$postgres_dir/log" 2>/dev/null | tr '\n' ' ')"
    return 1
}

postgres_running() {
    is_ours "$(pid_in "$postgres_dir/data/postmaster.pid")" "$postgres_dir/data"
}

# It answers, or it has died and never will.
postgres_settled() {
    postgres_check "$postgres_own_url" || ! postgres_running
}

postgres_start() {
    local bin=$1 try=$2 port
    parse_url "$postgres_own_url" 5432
    port=$URL_PORT
    if ((try > 3)) || [[ $port == 5432 ]] || port_is_open 127.0.0.1 "$port"; then
        pick_port port
    fi
    postgres_own_url="postgres://postgres:$URL_PASSWORD@127.0.0.1:$port/postgres"
    save_state
    as_postgres_user "$bin/pg_ctl" start --silent --wait --timeout=60 --pgdata="$postgres_dir/data" \
        --log="$postgres_dir/log" --options="-p $port" </dev/null >/dev/null 2>&1 9>&-
}

# Fast shutdown (SIGINT): running transactions are rolled back, the data is about to be removed anyway.
postgres_remove() {
    [[ -n $postgres_dir ]] || return 0
    stop_ours "$(pid_in "$postgres_dir/data/postmaster.pid")" "$postgres_dir/data" INT
    remove_ours "$postgres_dir"
    say "PostgreSQL in $postgres_dir stopped and removed"
}
