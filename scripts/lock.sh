#!/usr/bin/env bash
# Resolve the newest releases that pyproject.toml allows in a throw-away environment and write them to constraints.txt.
# Run the tests before the new pins are committed.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"${PYTHON:-python3}" -m venv "$scratch/venv"
# shellcheck disable=SC2086  # PIP_ARGS is a list of options
"$scratch/venv/bin/python" -m pip install --quiet --no-compile ${PIP_ARGS:-} --upgrade pip hatchling editables
# shellcheck disable=SC2086
"$scratch/venv/bin/python" -m pip install --quiet --no-compile ${PIP_ARGS:-} '.[dev,docs,eval,datasets,openvino,ctranslate2]'
# llama.cpp would be compiled, which takes minutes: what it would bring is looked up, and not installed.
# shellcheck disable=SC2086
"$scratch/venv/bin/python" -m pip install --quiet --dry-run --report "$scratch/compiled.json" ${PIP_ARGS:-} '.[llama-cpp]'
"$scratch/venv/bin/python" - "$scratch/compiled.json" >"$scratch/compiled.txt" <<'PYTHON'
import json, sys
for item in json.load(open(sys.argv[1]))["install"]:
    print(f"{item['metadata']['name']}=={item['metadata']['version']}")
PYTHON

{
    sed '/^[^#]/,$d' constraints.txt
    # The local part of a version (+cpu, +cu130) names a build, not a release: whoever installs chooses the build.
    # CUDA's own packages come with the builds that need them, at versions that PyTorch itself pins.
    { "$scratch/venv/bin/python" -m pip freeze --all && cat "$scratch/compiled.txt"; } \
        | grep -viE '^(unspool|nvidia-|cuda-|triton)' \
        | sed -E 's/\+[a-z0-9.]+$//; s/ @ .*//' \
        | LC_ALL=C sort --ignore-case
} >"$scratch/constraints.txt"
mv "$scratch/constraints.txt" constraints.txt
