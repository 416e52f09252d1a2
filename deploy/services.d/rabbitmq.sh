# shellcheck shell=bash
# RabbitMQ: the ways to get one. Each `rabbitmq_…` way that works sets and saves rabbitmq_url and rabbitmq_way, and returns 0.

rabbitmq_named() {
    local named=${KYHAN_AMQP_URL:-}
    # A shell that evaluated our own export lines names our own server, which we may restart.
    [[ -n $named && $named != "$rabbitmq_own_url" ]] || return 1
    rabbitmq_check "$named" ||
        die "KYHAN_AMQP_URL names $(masked "$named"), which cannot be used: $ANSWER. Correct it, or unset it to use a server that is found or started."
    rabbitmq_use "$named" 'named by KYHAN_AMQP_URL'
}

rabbitmq_own() {
    [[ -n $rabbitmq_own_url ]] || return 1
    if [[ -z $rabbitmq_dir ]]; then
        rabbitmq_compose_up
    elif rabbitmq_check "$rabbitmq_own_url"; then
        rabbitmq_private_ready
    else
        note "the private RabbitMQ does not answer; restarting it with the same data"
        rabbitmq_launch
    fi
}

rabbitmq_standard() {
    [[ ${KYHAN_SERVICES_SKIP_STANDARD_PORTS:-} != 1 ]] || return 1
    local url='amqp://guest:guest@127.0.0.1:5672/%2f'
    if rabbitmq_check "$url"; then
        rabbitmq_use "$url" 'found on its standard port'
        return
    fi
    ((ANSWER_CODE == 1)) || note "not using the server on 127.0.0.1:5672: $ANSWER"
    return 1
}

rabbitmq_compose() {
    compose_available && rabbitmq_compose_up
}

rabbitmq_compose_up() {
    compose_up rabbitmq || return 1
    rabbitmq_own_url="amqp://$COMPOSE_USER:$(compose_value RABBITMQ_PASSWORD)@127.0.0.1:$(compose_value RABBITMQ_PORT)/%2f"
    wait_until 30 rabbitmq_check "$rabbitmq_own_url" || {
        note "RabbitMQ in Docker Compose cannot be used: $ANSWER"
        return 1
    }
    rabbitmq_use "$rabbitmq_own_url" 'started with Docker Compose'
    # The container does not have the script, so its text is passed as an argument.
    rabbitmq_make_users compose exec -T rabbitmq bash -c "$(cat "$ROOT/deploy/rabbitmq/users")" users
}

rabbitmq_private() {
    rabbitmq_server >/dev/null && rabbitmq_create && rabbitmq_launch
}

rabbitmq_installed() {
    ! rabbitmq_server >/dev/null && install_with_apt rabbitmq-server && rabbitmq_private
}

rabbitmq_use() {
    rabbitmq_url=$1 rabbitmq_way=$2
    save_state
    say "RabbitMQ $ANSWER at $(masked "$rabbitmq_url"), $rabbitmq_way"
}

rabbitmq_private_ready() {
    rabbitmq_use "$rabbitmq_own_url" "started privately in $rabbitmq_dir"
    rabbitmq_make_users rabbitmq_private_users
}

# Matches the prefix of every fleet that the tests run side by side: kyhan.<name>.<12 digits>.
readonly RABBITMQ_PREFIXES='kyhan(\.[a-z0-9_]+\.[0-9a-f]{12})?'

# rabbitmq_make_users USERS…: creates the users of deploy/rabbitmq/users on our own broker, and saves the URLs with which they log
# in. USERS is the command that runs that script where the broker is. This happens every time, because the broker's data may be gone
# or the permissions may have changed.
rabbitmq_make_users() {
    local role key port definitions log="$HOME_DIR/rabbitmq-users.log"
    parse_url "$rabbitmq_own_url" 5672
    port=$URL_PORT
    for role in producer worker ops; do
        key="rabbitmq_${role}_url"
        parse_url "${!key}" 5672 || URL_PASSWORD=$(random_hex)
        printf -v "$key" 'amqp://kyhan_%s:%s@127.0.0.1:%s/%%2f' "$role" "$URL_PASSWORD" "$port"
    done
    save_state
    # The node answers a moment before it has started completely.
    if ! definitions=$(rabbitmq_definitions) || ! wait_until 20 rabbitmq_import "$definitions" "$log" "$@"; then
        # The broker can still be used without these users.
        note "the RabbitMQ users were not created: $(tail -n 3 "$log" 2>/dev/null | tr '\n' ' ')"
        rabbitmq_producer_url='' rabbitmq_worker_url='' rabbitmq_ops_url=''
        save_state
    fi
    rm -f "$log"
}

rabbitmq_definitions() (
    unset RABBITMQ_PRODUCER_PASSWORD_FILE RABBITMQ_WORKER_PASSWORD_FILE RABBITMQ_OPS_PASSWORD_FILE
    parse_url "$rabbitmq_producer_url" 5672 && export RABBITMQ_PRODUCER_PASSWORD=$URL_PASSWORD
    parse_url "$rabbitmq_worker_url" 5672 && export RABBITMQ_WORKER_PASSWORD=$URL_PASSWORD
    parse_url "$rabbitmq_ops_url" 5672 && export RABBITMQ_OPS_PASSWORD=$URL_PASSWORD
    exec "$ROOT/deploy/rabbitmq/users" --prefixes "$RABBITMQ_PREFIXES" definitions
)

# rabbitmq_import DEFINITIONS LOG USERS…
rabbitmq_import() {
    local definitions=$1 log=$2
    shift 2
    printf '%s\n' "$definitions" | "$@" import >"$log" 2>&1
}

# With the parts of the node's environment that rabbitmqctl needs, and nothing of the user's environment.
rabbitmq_private_users() {
    local server
    server=$(rabbitmq_server) || return 1
    env -i PATH="$PATH" HOME="$rabbitmq_dir/home" LANG=C.UTF-8 RABBITMQCTL="${server%/*}/rabbitmqctl" \
        ERL_EPMD_PORT="$rabbitmq_epmd_port" ERL_EPMD_ADDRESS=127.0.0.1 RABBITMQ_CONF_ENV_FILE="$rabbitmq_dir/rabbitmq-env.conf" \
        "$ROOT/deploy/rabbitmq/users" --node "$rabbitmq_node" --timeout 30 "$@" 9>&-
}

# rabbitmq_check URL: checks whether that server can be used. Sets ANSWER to its version or to what is wrong, and ANSWER_CODE to the
# exit code of amqp-answers.
rabbitmq_check() {
    ANSWER_CODE=6
    local default_port=5672
    [[ $1 != amqps:* ]] || default_port=5671
    { parse_url "$1" "$default_port" && [[ $URL_SCHEME == amqp || $URL_SCHEME == amqps ]]; } || {
        ANSWER='it is not a URL like amqp://user:password@host:port/vhost'
        return 1
    }
    if [[ $URL_SCHEME == amqps ]]; then
        rabbitmq_check_tls
        return
    fi
    local vhost=/
    [[ -z $URL_HAS_PATH ]] || vhost=$URL_PATH
    ANSWER_CODE=0
    ANSWER=$(HOST=$URL_HOST PORT=$URL_PORT USER=${URL_USER:-guest} PASSWORD=${URL_PASSWORD:-guest} VHOST=$vhost \
        bounded 15 "$PARTS/amqp-answers") || ANSWER_CODE=$?
    ANSWER=${ANSWER:-it did not answer within 15 seconds}
    ((ANSWER_CODE == 0)) || return 1
    # 3.10 is the first version whose quorum queues expire messages and dead-letter them at least once.
    if [[ $(printf '%s\n' 3.10 "$ANSWER" | sort -V | head -n 1) != 3.10 ]]; then
        ANSWER="it is RabbitMQ $ANSWER; 3.10 or later is required"
        ANSWER_CODE=7
        return 1
    fi
}

# bash cannot speak TLS, so this checks only that the port is open.
rabbitmq_check_tls() {
    if bounded 15 bash -c ': <>"/dev/tcp/$1/$2"' - "$URL_HOST" "$URL_PORT" 2>/dev/null; then
        ANSWER='(over TLS: only the open port was checked)' ANSWER_CODE=0
        return 0
    fi
    ANSWER='nothing answers' ANSWER_CODE=1
    return 1
}

# Prints the path of the real start script. Debian and Red Hat put a wrapper into PATH that switches to the user
# `rabbitmq`, which cannot access our directory.
rabbitmq_server() {
    local candidate
    command -v erl >/dev/null || return 1
    for candidate in /usr/lib/rabbitmq/bin/rabbitmq-server /opt/rabbitmq/sbin/rabbitmq-server \
        /opt/homebrew/sbin/rabbitmq-server /usr/local/sbin/rabbitmq-server "$(command -v rabbitmq-server || true)"; do
        if [[ -x $candidate ]]; then
            printf '%s' "$candidate"
            return 0
        fi
    done
    return 1
}

rabbitmq_create() {
    # A recorded directory without a URL means that an earlier start was interrupted.
    [[ -z $rabbitmq_dir ]] || remove_ours "$rabbitmq_dir"
    rabbitmq_dir="$HOME_DIR/rabbitmq"
    # A unique name: two nodes with the same name cannot run on one machine.
    rabbitmq_node="kyhan-$(random_hex)@localhost"
    save_state
    mkdir -p "$rabbitmq_dir"/{home,log,mnesia} || return 1
    chmod 700 "$rabbitmq_dir" || return 1
    # No plugins: none is needed here, and each would open a port.
    printf '[].\n' >"$rabbitmq_dir/enabled_plugins"
    # Replaces /etc/rabbitmq/rabbitmq-env.conf, whose settings (often a node name) are for the machine's own node.
    : >"$rabbitmq_dir/rabbitmq-env.conf"
    cp "$ROOT/deploy/rabbitmq/advanced.config" "$rabbitmq_dir/advanced.config" || return 1
    rabbitmq_own_url="amqp://kyhan:$(random_hex)@127.0.0.1:5672/%2f"
}

# Starts the private node, on its former port if that is still free, and waits until a login works. If an interrupted
# `up` left a node that is still booting, this waits for it: a second node on the same data would ruin the data.
rabbitmq_launch() {
    local server try pid
    server=$(rabbitmq_server) || die "the private RabbitMQ's program is missing; reinstall it, or run deploy/services down"
    for try in 1 2 3; do
        pid=$(pid_in "$rabbitmq_dir/pid")
        if ! is_ours "$pid" "$rabbitmq_node"; then
            rabbitmq_start_epmd || return 1
            rabbitmq_configure "$try" || return 1
            rabbitmq_start_node "$server"
            pid=$(pid_in "$rabbitmq_dir/pid")
        fi
        wait_until 90 rabbitmq_settled "$pid" || true
        if rabbitmq_check "$rabbitmq_own_url"; then
            rabbitmq_private_ready
            return 0
        fi
        stop_ours "$pid" "$rabbitmq_node" TERM
    done
    note "the private RabbitMQ did not start: $(tail -n 3 "$rabbitmq_dir/log/start.log" 2>/dev/null | tr '\n' ' ')"
    return 1
}

# Either it answers, or it has died.
rabbitmq_settled() {
    rabbitmq_check "$rabbitmq_own_url" || ! kill -0 "$1" 2>/dev/null
}

# rabbitmq_configure TRY: chooses the port, because the former one may be taken by now, and writes the configuration.
rabbitmq_configure() {
    local port
    parse_url "$rabbitmq_own_url" 5672
    port=$URL_PORT
    if (($1 > 1)) || [[ $port == 5672 ]] || port_is_open 127.0.0.1 "$port"; then
        pick_port port
    fi
    rabbitmq_own_url="amqp://$URL_USER:$URL_PASSWORD@127.0.0.1:$port/%2f"
    save_state
    write_privately "$rabbitmq_dir/rabbitmq.conf" <<CONF
# Written by deploy/services.
listeners.tcp.local = 127.0.0.1:$port
default_user = $URL_USER
default_pass = $URL_PASSWORD
max_message_size = 262144
log.file = rabbit.log
log.file.level = info
CONF
}

# Starts the port mapper of Erlang nodes. It is private, so that our node neither meets other nodes of this machine nor
# leaves an epmd behind: otherwise Erlang starts one by itself, as a daemon that is never stopped.
rabbitmq_start_epmd() {
    local epmd
    [[ -n $rabbitmq_epmd_port ]] && is_ours "$(pid_in "$rabbitmq_dir/epmd.pid")" "-port $rabbitmq_epmd_port" && return 0
    epmd=$(rabbitmq_epmd) || {
        note "epmd, a part of Erlang, was not found"
        return 1
    }
    pick_port rabbitmq_epmd_port
    save_state
    (start_detached "$rabbitmq_dir" "$rabbitmq_dir/log/epmd.log" \
        "$epmd" -port "$rabbitmq_epmd_port" -address 127.0.0.1) &
    printf '%s\n' $! >"$rabbitmq_dir/epmd.pid"
    wait_until 10 port_is_open 127.0.0.1 "$rabbitmq_epmd_port" || {
        note "epmd did not start: $(tail -n 1 "$rabbitmq_dir/log/epmd.log")"
        return 1
    }
}

rabbitmq_epmd() {
    local root candidate
    command -v epmd && return 0
    root=$(bounded 30 erl -noshell -eval 'io:format("~s", [code:root_dir()])' -s init stop) || return 1
    for candidate in "$root"/erts-*/bin/epmd; do
        if [[ -x $candidate ]]; then
            printf '%s' "$candidate"
            return 0
        fi
    done
    return 1
}

rabbitmq_start_node() {
    local server=$1 distribution_port
    pick_port distribution_port
    # A clean environment (env -i), because any RABBITMQ_… or ERL_… variable of the user's would reach the node.
    # RUNNING_UNDER_SYSTEMD makes the start script exec the node instead of waiting for it as a parent, so that the pid
    # recorded here is the node's from the start. Erlang ignores -kyhan_node; it marks the process as ours from the start.
    # The distribution port is bound to 127.0.0.1 too: anyone who can reach it and has the cookie controls the node.
    (start_detached "$rabbitmq_dir" "$rabbitmq_dir/log/start.log" env -i \
        PATH="$PATH" HOME="$rabbitmq_dir/home" LANG=C.UTF-8 RUNNING_UNDER_SYSTEMD=true \
        ERL_EPMD_PORT="$rabbitmq_epmd_port" ERL_EPMD_ADDRESS=127.0.0.1 ERL_CRASH_DUMP="$rabbitmq_dir/log/erl_crash.dump" \
        RABBITMQ_NODENAME="$rabbitmq_node" RABBITMQ_DIST_PORT="$distribution_port" \
        RABBITMQ_CONF_ENV_FILE="$rabbitmq_dir/rabbitmq-env.conf" \
        RABBITMQ_CONFIG_FILE="$rabbitmq_dir/rabbitmq.conf" \
        RABBITMQ_ADVANCED_CONFIG_FILE="$rabbitmq_dir/advanced.config" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$rabbitmq_dir/enabled_plugins" \
        RABBITMQ_GENERATED_CONFIG_DIR="$rabbitmq_dir/generated" RABBITMQ_SCHEMA_DIR="$rabbitmq_dir/schema" \
        RABBITMQ_MNESIA_BASE="$rabbitmq_dir/mnesia" RABBITMQ_LOG_BASE="$rabbitmq_dir/log" \
        RABBITMQ_PID_FILE="$rabbitmq_dir/pid" \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}" \
        "$server" -kyhan_node "$rabbitmq_node") &
    printf '%s\n' $! >"$rabbitmq_dir/pid"
}

rabbitmq_remove() {
    [[ -n $rabbitmq_dir ]] || return 0
    stop_ours "$(pid_in "$rabbitmq_dir/pid")" "$rabbitmq_node" TERM
    if [[ -n $rabbitmq_epmd_port ]]; then
        stop_ours "$(pid_in "$rabbitmq_dir/epmd.pid")" "-port $rabbitmq_epmd_port" TERM
    fi
    remove_ours "$rabbitmq_dir"
    say "RabbitMQ in $rabbitmq_dir stopped and removed"
}
