#!/usr/bin/env bash
# Installs what Graft is built with, and fetches MLX and a small model into .deps.
#
#   scripts/setup.sh          what the library and the program need
#   scripts/setup.sh tests    and what their tests need
#   scripts/setup.sh cuda     and MLX for CUDA; CUDA itself, cuDNN and NCCL are yours to install
#
# System packages are installed where that can be done (root, or sudo); elsewhere it says exactly
# what is missing and stops. A second run finds everything there, and needs no network.
set -euo pipefail
cd "$(dirname "$0")/.."

want_tests=false want_cuda=false
for word in "$@"; do
  case "$word" in
    tests) want_tests=true ;;
    cuda) want_cuda=true ;;
    *) echo "usage: scripts/setup.sh [tests] [cuda]" >&2; exit 2 ;;
  esac
done

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 1; }

# Debian 12, Ubuntu 22.04 and later.
setup_apt() {
  local packages=(
    g++ cmake ninja-build pkg-config python3
    libhwy-dev libopenblas-dev libcli11-dev nlohmann-json3-dev libspdlog-dev)
  if $want_tests; then packages+=(git clang libclang-rt-14-dev ccache libgtest-dev libbenchmark-dev doxygen); fi

  local missing=() package
  for package in "${packages[@]}"; do
    # A tool may also come from elsewhere than apt.
    case "$package" in
      g++ | cmake | python3 | git | clang) command -v "$package" > /dev/null && continue ;;
      ninja-build) command -v ninja > /dev/null && continue ;;
    esac
    [[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null)" == installed ]] ||
      missing+=("$package")
  done
  python3 -m pip --version > /dev/null 2>&1 || missing+=(python3-pip)
  ((${#missing[@]})) || return 0

  local as_root=()
  if ((EUID != 0)); then
    # Without a terminal, sudo may not ask for a password.
    if command -v sudo > /dev/null && { [[ -t 0 ]] || sudo -n true 2> /dev/null; }; then
      as_root=(sudo)
    else
      die "missing packages; install them as root, then run this again:
  apt-get install --no-install-recommends ${missing[*]}"
    fi
  fi
  say "installing with apt: ${missing[*]}"
  local log
  log="$(mktemp)"
  "${as_root[@]}" apt-get update > "$log" 2>&1 || { cat "$log" >&2; die "apt-get update failed"; }
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends "${missing[@]}" > "$log" 2>&1 ||
    { cat "$log" >&2; die "apt-get install failed"; }
  rm -f "$log"
}

# macOS with Homebrew: written for, not yet run by anybody.
setup_brew() {
  local formulae=(cmake ninja pkg-config python highway cli11 nlohmann-json spdlog)
  if $want_tests; then formulae+=(googletest google-benchmark doxygen); fi
  local missing=() formula
  for formula in "${formulae[@]}"; do
    brew list --versions "$formula" > /dev/null 2>&1 || missing+=("$formula")
  done
  ((${#missing[@]})) || return 0
  say "installing with Homebrew: ${missing[*]}"
  brew install "${missing[@]}"
}

if command -v apt-get > /dev/null; then
  setup_apt
elif [[ "$(uname -s)" == Darwin ]] && command -v brew > /dev/null; then
  setup_brew
else
  say "neither apt-get nor Homebrew here; going on with what is installed. Needed: a C++20 compiler," \
    "CMake 3.22, Ninja, pkg-config, Python 3.8 with pip, Highway, OpenBLAS, CLI11, nlohmann-json," \
    "spdlog$($want_tests && echo ", GoogleTest, Google Benchmark, Doxygen, clang")."
fi

fetch=(python3 scripts/fetch_deps.py)
if $want_tests; then fetch+=(--clang-format); fi
"${fetch[@]}"
if $want_cuda; then python3 scripts/fetch_deps.py --cuda; fi
say "ready"
