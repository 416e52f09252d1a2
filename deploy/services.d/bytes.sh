# shellcheck shell=bash
# A binary protocol in bash: sends hexadecimal, reads numbers, over descriptor 3.

readonly BYTE_SECONDS=5

# connect HOST PORT
connect() { { exec 3<>"/dev/tcp/$1/$2"; } 2>/dev/null; }

send_hex() {
    local rest=$1 escaped=''
    while [[ -n $rest ]]; do
        escaped+="\\x${rest:0:2}"
        rest=${rest:2}
    done
    printf '%b' "$escaped" >&3
}

# The hexadecimal of TEXT, byte by byte.
hex_of() {
    local text=$1 i
    for ((i = 0; i < ${#text}; i++)); do
        printf '%02x' "$(($(printf '%d' "'${text:i:1}") & 255))"
    done
}

# read_bytes COUNT: sets BYTES to the numbers read, and TEXT to the same bytes with a dot for each unprintable one.
# A zero byte is the delimiter of `read`, so it leaves the character empty; an empty character therefore means zero.
read_bytes() {
    local count=$1 character
    BYTES=() TEXT=''
    while ((count-- > 0)); do
        { IFS= read -r -d '' -n 1 -t "$BYTE_SECONDS" -u 3 character; } 2>/dev/null || return 1
        if [[ -z $character ]]; then
            BYTES+=(0)
            TEXT+=.
        else
            BYTES+=("$(($(printf '%d' "'$character") & 255))")
            case "$character" in
                [[:print:]]) TEXT+=$character ;;
                *) TEXT+=. ;;
            esac
        fi
    done
}

# number_at INDEX COUNT: the big-endian number in COUNT of the BYTES, starting at INDEX.
number_at() {
    local i number=0
    for ((i = $1; i < $1 + $2; i++)); do
        number=$((number * 256 + BYTES[i]))
    done
    printf '%d' "$number"
}
