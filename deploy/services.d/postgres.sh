# shellcheck shell=bash
# PostgreSQL: the ways to get one. Each `postgres_…` way that works sets and saves postgres_url and postgres_way, and returns 0.

postgres_named() {
    local named=${KYHAN_DATABASE_URL:-}
    # A shell that evaluated our own export lines names our own server, which we may restart.
    [[ -n $named && $named != "$postgres_own_url" ]] || return 1
    postgres_check "$named" ||
        die "KYHAN_DATABASE_URL names $(masked "$named"), which cannot be used: $ANSWER. Correct it, or unset it to use a server that is found or started."
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
        note "the private PostgreSQL does not answer; restarting it with the same data"
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
        ((ANSWER_CODE > 2)) || break # not a PostgreSQL, so no other role will work either
    done
    ((ANSWER_CODE == 1)) || note "not using the server on 127.0.0.1:5432: $reason"
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

# With its version, unless the last check could not read it.
postgres_name() {
    if ((ANSWER_CODE == 0)); then printf 'PostgreSQL %s' "$ANSWER"; else printf PostgreSQL; fi
}

# postgres_check URL: checks whether that server can be used. Sets ANSWER to its version or to what is wrong, and ANSWER_CODE to
# the exit code of postgres-answers. A role that may not create databases, and a login that could not be tried, still pass.
postgres_check() {
    ANSWER_CODE=6
    { parse_url "$1" 5432 && [[ $URL_SCHEME == postgres || $URL_SCHEME == postgresql ]]; } || {
        ANSWER='it is not a URL like postgres://user:password@host:port/database'
        return 1
    }
    local user=${URL_USER:-$(id -un)} sslmode
    sslmode=$(query_value sslmode)
    ANSWER_CODE=0
    ANSWER=$(HOST=$URL_HOST PORT=$URL_PORT USER=$user PASSWORD=$URL_PASSWORD DATABASE=${URL_PATH:-$user} \
        PGSSLMODE=${sslmode:-prefer} PGSSLROOTCERT=$(query_value sslrootcert) \
        bounded 15 "$PARTS/postgres-answers") || ANSWER_CODE=$?
    ANSWER=${ANSWER:-it did not answer within 15 seconds}
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

# Creates a new cluster, in a directory that the server's user can reach.
postgres_create() {
    local bin password
    bin=$(postgres_binaries) || return 1
    # A recorded directory without a URL means that an earlier initdb was interrupted.
    [[ -z $postgres_dir ]] || remove_ours "$postgres_dir"
    postgres_make_directory || return 1
    password=$(random_hex)
    # A password, although it listens only on 127.0.0.1: with trust, any user of this machine could run programs as the
    # owner of this server. It is passed by pipe and file, never as an argument, which `ps` would show.
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
# No Unix socket: its path is limited to 107 bytes, which a checkout in a deep directory exceeds.
unix_socket_directories = ''
# Every test has its own database and pool, and tests run side by side.
max_connections = 300
# As in production, so that what is measured and killed here also holds there.
fsync = on
full_page_writes = on
synchronous_commit = on
# With the default shared_buffers of 128 MB, sessions evict each other's pages. With the default max_wal_size of 1 GB, a burst
# forces a checkpoint, after which each changed page is logged in full.
shared_buffers = 512MB
max_wal_size = 4GB
checkpoint_timeout = 15min
CONF
}

# Sets and saves postgres_dir. If the server's user cannot reach the checkout (for example in root's home), the data goes
# to /var/tmp; not to /tmp, which may be in memory.
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
    # pg_ctl needs a working directory that its user may enter.
    cd / || exit 1
    if ((EUID != 0)); then
        bounded 300 "$@"
    elif command -v setpriv >/dev/null; then
        bounded 300 setpriv --reuid="$(postgres_user)" --regid="$(id -g "$(postgres_user)")" --clear-groups -- "$@"
    else
        bounded 300 runuser -u "$(postgres_user)" -- "$@"
    fi
)

# Starts the private cluster, on its former port if that is still free, and waits until it answers. It tries several
# times: a port can be taken between the choice and the start, and after a kill -9 the old server's last children need a
# moment to exit.
postgres_launch() {
    local bin try
    bin=$(postgres_binaries) || die "the private PostgreSQL's program is missing; reinstall it, or run deploy/services down"
    for try in 1 2 3 4 5; do
        postgres_running || postgres_start "$bin" "$try"
        if wait_until 15 postgres_settled && postgres_check "$postgres_own_url"; then
            postgres_use "$postgres_own_url" "started privately in $postgres_dir"
            return 0
        fi
        sleep 1
    done
    note "the private PostgreSQL did not start: $(tail -n 3 "$postgres_dir/log" 2>/dev/null | tr '\n' ' ')"
    return 1
}

postgres_running() {
    is_ours "$(pid_in "$postgres_dir/data/postmaster.pid")" "$postgres_dir/data"
}

# Either it answers, or it has died.
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

# Fast shutdown (SIGINT): it rolls back running transactions; the data is removed anyway.
postgres_remove() {
    [[ -n $postgres_dir ]] || return 0
    stop_ours "$(pid_in "$postgres_dir/data/postmaster.pid")" "$postgres_dir/data" INT
    remove_ours "$postgres_dir"
    say "PostgreSQL in $postgres_dir stopped and removed"
}
