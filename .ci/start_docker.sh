#!/usr/bin/env bash
# A Docker engine on a machine without one: installed from the distribution, started by hand, left running.
#   start_docker.sh            the machine's own: /var/run/docker.sock, /var/lib/docker
#   start_docker.sh FOLDER     a private one with all that is its own under FOLDER (docker.sock, data, run)
# Prints the address on standard output, everything else on standard error. Running it again changes nothing. Root only.
#
# The engine has no bridge and touches no firewall: its containers have no network or the host's.
set -euo pipefail

if [ $# -gt 0 ]; then
    mkdir -p "$1"
    home=$(realpath "$1") socket=$home/docker.sock data=$home/data run=$home/run
else
    socket=/var/run/docker.sock data=/var/lib/docker run=/var/run/forge-docker
fi
pidfile=$run/docker.pid log=$run/dockerd.log

answers() { # a bare HTTP ping: neither curl nor a docker client need be installed
    timeout 5 python3 - "$socket" 2>/dev/null <<'PYTHON'
import socket, sys
with socket.socket(socket.AF_UNIX) as line:
    line.settimeout(4)
    line.connect(sys.argv[1])
    line.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
    sys.exit(b" 200 " not in line.recv(64))
PYTHON
}

lives() { # PID NAME; a zombie is not alive, and a recycled pid is somebody else
    [ -r "/proc/$1/stat" ] && grep -qs "^$2" "/proc/$1/comm" && ! grep -qs '^State:[[:space:]]*[ZX]' "/proc/$1/status"
}

start() {
    local held orphan ticks pid
    # dockerd refuses to start beside a pid file whose number lives, whoever has it by now.
    held=$(cat "$pidfile" 2>/dev/null || true)
    if ! lives "${held:-0}" dockerd; then
        rm -f "$pidfile"
        # The containerd of an engine that was killed ends with it; taken for alive (a zombie is) it costs 15 s.
        orphan=$(cat "$run/exec/containerd/containerd.pid" 2>/dev/null || true)
        for ((ticks = 0; ticks < 50; ticks++)); do
            lives "${orphan:-0}" containerd || break
            kill "$orphan" 2>/dev/null || true
            sleep 0.1
        done
        rm -f "$run/exec/containerd/containerd.pid"
    fi
    setsid dockerd --host "unix://$socket" --data-root "$data" --exec-root "$run/exec" --pidfile "$pidfile" \
        --bridge=none --iptables=false --ip6tables=false --userland-proxy=false >>"$log" 2>&1 </dev/null 9>&- &
    pid=$!
    for ((ticks = 0; ticks < 300; ticks++)); do
        answers && return 0
        # Until it is dockerd it is setsid: only from then on does its absence mean that it ended.
        ((ticks < 10)) || lives "$pid" dockerd || return 1
        sleep 0.1
    done
    kill "$pid" 2>/dev/null || true
    return 1
}

if ! answers; then
    [ "$(id -u)" = 0 ] || { echo "start_docker.sh: a Docker engine can only be started by root" >&2; exit 1; }
    if ! command -v dockerd >/dev/null; then
        command -v apt-get >/dev/null || { echo "start_docker.sh: no dockerd, and no apt-get to install it" >&2; exit 1; }
        { apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends docker.io; } >&2
    fi
    mkdir -p "$run" "$data"
    exec 9>"$run/lock"
    flock 9 # of two scripts at once, one starts it
    # What a killed engine left can still make the first start fail; the next one finds it cleared away.
    answers || start || start || start || {
        echo "start_docker.sh: dockerd did not start; the end of $log:" >&2
        tail -n 20 "$log" >&2
        exit 1
    }
fi
echo "unix://$socket"
