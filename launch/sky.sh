#!/usr/bin/env bash
# `ssb` as a managed job of SkyPilot, which recovers spot capacity and deletes it at the end.
set -euo pipefail
echo @cost@ >&2
task=$(mktemp --suffix=.yaml)
trap 'rm -f "$task"' EXIT
cat >"$task" <<<@task@
sky jobs launch --yes --name=@name@ "$task"
