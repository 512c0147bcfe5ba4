#!/bin/sh
# Install t2v into a new virtual environment: what both images run, and what `make image-test` runs without an engine.
#
#   docker/install.sh SOURCE VENV [cpu|cuda] [EXTRAS]
#
# SOURCE  the checkout (pyproject.toml, constraints.txt); it is installed in place, so it must stay where it is
# VENV    where the environment goes; must not exist yet
# cpu     PyTorch's builds without CUDA, from PyTorch's own index (the wheels of PyPI carry CUDA)
# cuda    PyPI's builds; CUDA's libraries come with them as wheels, the driver comes from the host
# EXTRAS  of pyproject.toml, comma-separated
#
# PYTHON names the interpreter (default python3); T2V_TORCH_INDEX another index of PyTorch's builds.
set -eu

source=${1:?usage: docker/install.sh SOURCE VENV [cpu|cuda] [EXTRAS]}
venv=${2:?usage: docker/install.sh SOURCE VENV [cpu|cuda] [EXTRAS]}
flavour=${3:-cuda}
extras=${4:-server,demo}
python=${PYTHON:-python3}

[ ! -e "$venv" ] || { echo "install.sh: $venv is there already; wanted a place for a new environment" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
    # constraints.txt was made and tested on one version of Python.
    echo "install.sh: $python is $("$python" --version 2>&1); constraints.txt is for Python 3.11; set PYTHON" >&2
    exit 2
}

"$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip "$@"; }
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

case $flavour in
cpu)
    # By itself and without dependencies, so that no other package can come from that index.
    pip install --no-deps --constraint "$source/constraints.txt" \
        --index-url "${T2V_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}" torch torchvision
    ;;
cuda) ;;
*)
    echo "install.sh: unknown flavour $flavour; wanted cpu or cuda" >&2
    exit 2
    ;;
esac
pip install --constraint "$source/constraints.txt" --editable "$source[$extras]"
pip check
