# shellcheck shell=bash
# Server URLs: parses them and masks passwords for printing.

# parse_url URL DEFAULT_PORT: sets URL_SCHEME, URL_USER, URL_PASSWORD, URL_HOST, URL_PORT, URL_PATH (each decoded;
# URL_HAS_PATH distinguishes an empty path from none) and URL_QUERY.
parse_url() {
    local pattern='^([a-z]+)://(([^:@/?]*)(:([^@/?]*))?@)?(\[[^]]+\]|[^:/?]*)(:([0-9]+))?(/([^?]*))?(\?(.*))?$'
    [[ $1 =~ $pattern ]] || return 1
    local match=("${BASH_REMATCH[@]}")
    URL_SCHEME=${match[1]}
    URL_USER=$(decoded "${match[3]}")
    URL_PASSWORD=$(decoded "${match[5]}")
    URL_HOST=$(decoded "${match[6]}")
    URL_HOST=${URL_HOST#[}
    URL_HOST=${URL_HOST%]}
    URL_HOST=${URL_HOST:-127.0.0.1}
    URL_PORT=${match[8]:-$2}
    URL_HAS_PATH=${match[9]:+yes}
    URL_PATH=$(decoded "${match[10]}")
    URL_QUERY=${match[12]}
}

decoded() {
    local escaped=${1//\\/\\\\}
    printf '%b' "${escaped//%/\\x}"
}

encoded() {
    local text=$1 i character
    for ((i = 0; i < ${#text}; i++)); do
        character=${text:i:1}
        case "$character" in
            [A-Za-z0-9._~-]) printf '%s' "$character" ;;
            *) printf '%%%02X' "$(($(printf '%d' "'$character") & 255))" ;;
        esac
    done
}

# The URL with its password hidden, even if the URL cannot be parsed.
masked() {
    sed -E 's#^([a-z]+://[^:@/]*):.*@#\1:***@#' <<<"$1"
}

# query_value NAME: the value of a parameter of the URL that was parsed last.
query_value() {
    local pair pairs
    IFS='&' read -r -a pairs <<<"$URL_QUERY"
    for pair in ${pairs[@]+"${pairs[@]}"}; do
        if [[ ${pair%%=*} == "$1" ]]; then
            decoded "${pair#*=}"
            return
        fi
    done
}
