#!/bin/sh
# Prints the JAVA_HOME of a Java that Spark 4 runs on, 17 or newer; installs one if there is none.
# usage: java.sh [PYTHON]      PYTHON: an interpreter with pip, for the last resort
# NO_SYSTEM_PACKAGES=1 keeps it from calling the system's package manager.
# Only the answer goes to stdout. Without one: a sentence on stderr, exit status 1.
set -u
cache=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/spark-rerank/java

# java_home JAVA: print the home of this program if it is new enough. Java is asked for both facts,
# because links, version managers' shims and macOS' /usr/bin/java do not tell by their path.
java_home() {
    settings=$("$1" -XshowSettings:properties -version 2>&1) || return 1
    version=$(printf '%s\n' "$settings" | sed -n 's/^ *java\.specification\.version = //p')
    case $version in
        '' | *[!0-9]*) return 1 ;; # Java 8 calls itself 1.8
    esac
    [ "$version" -ge 17 ] && printf '%s\n' "$settings" | sed -n 's/^ *java\.home = //p'
}

find_java() {
    for java in \
        "${JAVA_HOME:-/nonexistent}/bin/java" \
        "$(command -v java)" \
        "$cache"/*/bin/java \
        "$cache"/*/Contents/Home/bin/java \
        /usr/lib/jvm/*/bin/java \
        /Library/Java/JavaVirtualMachines/*/Contents/Home/bin/java \
        /opt/homebrew/opt/openjdk*/bin/java \
        /usr/local/opt/openjdk*/bin/java; do
        [ -x "$java" ] && java_home "$java" && return 0
    done
    return 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Use the package manager where that needs no password. Newer systems have dropped 17 for 21.
system_java() {
    [ -z "${NO_SYSTEM_PACKAGES:-}" ] || return 1
    if [ "$(id -u)" = 0 ]; then
        root=
    elif have brew; then # refuses to run as root, and needs no rights
        brew install openjdk@17
        return
    elif have sudo && sudo -n true 2>/dev/null; then
        root='sudo -n'
    else
        return 1
    fi
    if have apt-get; then
        apt="$root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::http::Timeout=30
            -o Acquire::https::Timeout=30 -o DPkg::Lock::Timeout=120"
        $apt update
        $apt install -y --no-install-recommends openjdk-17-jre-headless ||
            $apt install -y --no-install-recommends openjdk-21-jre-headless
    elif have dnf; then
        $root dnf install -y java-17-openjdk-headless || $root dnf install -y java-21-openjdk-headless
    elif have yum; then
        $root yum install -y java-17-openjdk-headless
    elif have zypper; then
        $root zypper --non-interactive install java-17-openjdk-headless
    elif have apk; then
        $root apk add openjdk17-jre-headless
    elif have pacman; then
        $root pacman -S --noconfirm jre17-openjdk-headless
    else
        return 1
    fi
}

# Download one for this user alone. It is unpacked beside its place and then moved there,
# so that a broken download never looks like a Java.
user_java() {
    constraints=$(dirname "$0")/../conf/constraints.txt
    "$1" -m pip install -q --disable-pip-version-check -c "$constraints" install-jdk || return 1
    mkdir -p "$cache" && part=$(mktemp -d "$cache/.part.XXXXXX") || return 1
    trap 'rm -rf "$part"' EXIT
    trap 'exit 1' HUP INT TERM
    "$1" -c '
import socket, sys, jdk
socket.setdefaulttimeout(30)
try:
    jdk.install("17", jre=True, path=sys.argv[1])
except Exception as error:
    sys.exit(f"The download of Java failed: {error}")
' "$part" && mv "$part"/* "$cache"
}

find_java && exit
echo 'No Java 17 or newer found: installing one' >&2
system_java >&2 && find_java && exit
[ -n "${1:-}" ] && user_java "$1" >&2 && find_java && exit
echo "Java 17 or newer is needed and could not be installed from here: install it (on Debian or" \
    "Ubuntu 'apt-get install openjdk-17-jre-headless', on macOS 'brew install openjdk@17')" \
    "or set JAVA_HOME to one." >&2
exit 1
