#!/bin/sh
# What `docker build` and a first run of the image do, without an engine: a fresh Debian root file system, the files that
# .dockerignore lets through, docker/install.sh, then docker/smoke.py as the image's user on a read-only root.
#
#   docker/image_test.sh [cpu|cuda] [FOLDER]
#
# FOLDER is made and kept (default: a temporary one, removed at the end). Needs root and debootstrap; where either is missing, the
# environment is made beside the checkout instead, which shows less: the machine's own libraries are there. T2V_BIND names
# folders to show inside, for package indexes on this disk.
set -eu
cd "$(dirname "$0")/.."
flavour=${1:-cuda}
work=${2:-}
if [ -z "$work" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work"
began=$(date +%s)
told() { echo "image-test: $1 ($(($(date +%s) - began)) s)"; }

context="pyproject.toml constraints.txt README.md LICENSE prefect.yaml t2v_core flows examples docker"

if [ "$(id -u)" = 0 ] && command -v debootstrap >/dev/null && command -v unshare >/dev/null; then
    root=$work/root
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" >"$work/debootstrap.log" 2>&1 ||
        { tail -5 "$work/debootstrap.log" >&2; exit 1; }
    told "Debian root file system"
    mkdir -p "$root/app" "$root/var/lib/t2v"
    # shellcheck disable=SC2086
    git ls-files -z --cached --others --exclude-standard -- $context | tar -c --null -T - | tar -x --no-same-owner -C "$root/app"
    chown 10001:10001 "$root/var/lib/t2v"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    [ ! -d /etc/xdg/pip ] || { mkdir -p "$root/etc/xdg" && cp -r /etc/xdg/pip "$root/etc/xdg/"; }
    [ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    export root flavour
    unshare --mount --propagation private sh -eu -c '
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        for folder in ${T2V_BIND:-}; do mkdir -p "$root$folder"; mount --bind -o ro "$folder" "$root$folder"; done
        pip="$(env | grep "^PIP_" || true)"
        chroot "$root" env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8 HOME=/root $pip \
            sh /app/docker/install.sh /app /opt/t2v "$flavour" server,demo
    ' >"$work/install.log" 2>&1 || { tail -20 "$work/install.log" >&2; exit 1; }
    told "installed, $(du -sm "$root/opt/t2v" | cut -f1) MB of environment"
    unshare --mount --pid --fork --propagation private sh -eu -c '
        mount --bind "$root" "$root"
        mount -o remount,ro,bind "$root"
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs tmpfs "$root/tmp"
        mount -t tmpfs -o uid=10001,gid=10001,mode=0700 tmpfs "$root/var/lib/t2v"
        # The variables are those of docker/Dockerfile.
        variables="$(chroot "$root" /opt/t2v/bin/python /app/docker/variables.py)"
        chroot "$root" setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all \
            env -i LANG=C.UTF-8 $variables sh -c "cd /app && exec python docker/smoke.py"
    '
    told "smoke test as uid 10001 on a read-only root"
else
    echo "image-test: no root, debootstrap or unshare here: a fresh environment beside the checkout instead of a root file system"
    mkdir -p "$work/app"
    # shellcheck disable=SC2086
    git ls-files -z --cached --others --exclude-standard -- $context | tar -c --null -T - | tar -x -C "$work/app"
    env -i PATH="$PATH" HOME="$work" PYTHON="${PYTHON:-python3}" sh "$work/app/docker/install.sh" "$work/app" "$work/venv" "$flavour" server,demo
    told "installed"
    chmod -R a-w "$work/app" "$work/venv"
    env -i PATH="$work/venv/bin:/usr/bin:/bin" HOME="$work" "$work/venv/bin/python" "$work/app/docker/smoke.py"
fi
