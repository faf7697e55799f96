#!/usr/bin/env bash
# Checks that every C++ file is formatted as .clang-format says; --fix formats them.
# Generated tables (.inc) are left as their generators write them.
set -euo pipefail
cd "$(dirname "$0")/.."

version=14.0.6 # each version formats a little differently
formatter=".deps/clang-format-$version"
if [[ ! -x "$formatter" ]]; then
  formatter=clang-format
  clang-format --version | grep -qF "$version" ||
    { echo "check_format: needs clang-format $version; run scripts/setup.sh tests" >&2; exit 1; }
fi

mode=(--dry-run --Werror)
if [[ "${1:-}" == --fix ]]; then mode=(-i); fi
# Files that git does not know yet count too, so that a check before a commit sees them.
git ls-files -z --cached --others --exclude-standard -- \
  '*.h' '*.cc' '*.cpp' '*.cu' '*.cuh' '*.mm' |
  xargs -0 "$formatter" --style=file "${mode[@]}"
