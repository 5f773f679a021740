#!/usr/bin/env bash
# `ssb` as a managed job of SkyPilot, which recovers spot capacity and deletes it at the end.
set -euo pipefail
echo 'cost: 16 chips x 0.5 = 8.00 an hour for as long as they exist' >&2
task=$(mktemp --suffix=.yaml)
trap 'rm -f "$task"' EXIT
cat >"$task" <<<'name: ssb
workdir: .
resources:
  infra: gcp
  accelerators: tpu-v5litepod-16
  accelerator_args:
    runtime_version: v2-alpha-tpuv5-lite
  use_spot: false
  job_recovery:
    strategy: FAILOVER
    recover_on_exit_codes:
    - 75
    - 134
    - 137
    - 143
setup: '"'"'python3 -m venv ~/ssb

  ~/ssb/bin/pip install '"'"''"'"'.[tpu]'"'"''"'"'

  sudo mount /runs'"'"'
run: SSB_COORDINATOR=auto ~/ssb/bin/ssb run configs/qwen2.5-3b-gsm8k.yaml --out '"'"'/runs/it'"'"'"'"'"'"'"'"'s'"'"'
'
sky jobs launch --yes --name=ssb "$task"
