#!/usr/bin/env bash
# The programs that our traces are opened with in tests: what is missing is installed.
# Without them their tests are skipped; with REQUIRE_TOOLS=1 (as in CI) a skipped test fails.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
for package in trace-cmd uftrace chromium npm gcc g++ make; do
    command -v "$package" >/dev/null || missing+=("$package")
done
if ((${#missing[@]})); then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

viewer=.venv/speedscope
if [[ ! -d $viewer/node_modules/speedscope ]]; then
    npm install --silent --no-audit --no-fund --prefix "$viewer" speedscope@1 >/dev/null
fi

# A real program to trace: LZ4's own C (BSD 2-Clause, Yann Collet), as the npm package lz4 carries it.
program=.venv/lz4
if [[ ! -f $program/package/deps/lz4/lib/lz4.c ]]; then
    mkdir -p "$program"
    (cd "$program" && npm pack --silent lz4@0.6.5 >/dev/null && tar xzf lz4-0.6.5.tgz)
fi
