# shellcheck shell=bash
# Installs the servers where that needs no confirmation, and otherwise prints how to install them.

readonly POLICY=/usr/sbin/policy-rc.d

# install_with_apt PACKAGE
install_with_apt() {
    ((EUID == 0)) && [[ -e /etc/debian_version ]] && command -v apt-get >/dev/null || return 1
    note "installing $1 with apt-get"
    mkdir -p "$HOME_DIR"
    local log="$HOME_DIR/apt.log"
    if ! (apt_without_starting "$1") >"$log" 2>&1 9>&-; then
        note "apt-get could not install $1: $(grep '^E:' "$log" | tail -n 2 | tr '\n' ' ')"
        return 1
    fi
    rm -f "$log"
}

# Debian's packages start their servers on the standard ports, as services of the machine, which is not wanted here.
# policy-rc.d is Debian's way to forbid it. An existing one is restored afterwards: this runs in a subshell, whose exit
# trap restores it in every case.
apt_without_starting() {
    local kept=''
    if [[ -e $POLICY || -L $POLICY ]]; then
        kept="$POLICY.kyhan-kept"
        mv -f "$POLICY" "$kept"
    fi
    # shellcheck disable=SC2064 # the present value is meant
    trap "rm -f '$POLICY'; [[ -z '$kept' ]] || mv -f '$kept' '$POLICY'" EXIT
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
    bounded 600 apt-get update
    DEBIAN_FRONTEND=noninteractive bounded 1800 apt-get install --yes --no-install-recommends "$1"
}

# install_hint PACKAGE…: what is missing, and the command for each common system.
install_hint() {
    local names=$*
    cat >&2 <<HINT
services: not found, and cannot be started here: ${names// /, }. Install what is missing, then run this again:

  Debian, Ubuntu   sudo apt-get install ${names/rabbitmq/rabbitmq-server}
  Fedora           sudo dnf install $(dnf_names "$@")
  Arch             sudo pacman -S $names
  macOS            brew install ${names/postgresql/postgresql@17}

or start Docker, or name servers that are already running:

  export KYHAN_DATABASE_URL=postgres://user:password@host:5432/postgres
  export KYHAN_AMQP_URL=amqp://user:password@host:5672/%2f
HINT
}

dnf_names() {
    local names=$*
    names=${names/postgresql/postgresql-server}
    printf '%s' "${names/rabbitmq/rabbitmq-server}"
}
