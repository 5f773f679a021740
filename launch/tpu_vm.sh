#!/usr/bin/env bash
# `ssb` on the hosts of a TPU slice, by a queued resource: create, wait, install, run, fetch the status, delete.
# Started again it takes up the resource of its name. A preempted slice is made anew and the run goes on.
set -euo pipefail

name=@name@ project=@project@ zone=@zone@
attempts=@attempts@ poll_seconds=@poll_seconds@ spot=@spot@
echo @cost@ >&2

queued() { gcloud compute tpus queued-resources "$@" --project="$project" --zone="$zone" --quiet; }
workers() { gcloud compute tpus tpu-vm ssh "$name" --project="$project" --zone="$zone" --quiet --worker=all --command="$1"; }
copy() { gcloud compute tpus tpu-vm scp "$archive/ssb-jax.tar.gz" "$name:" --project="$project" --zone="$zone" --quiet --worker=all; }
# Empty where there is no such resource.
state() { queued list --filter="name~/$name\$" --format='value(state.state)'; }

archive=$(mktemp -d)
# shellcheck disable=SC2329  # called by the trap
finish() {
  local status=$? now
  trap - EXIT
  rm -rf "$archive"
  if ! now=$(state) || [ -n "$now" ]; then
    echo "launch: deleting $name" >&2
    queued delete "$name" --force || echo "launch: $name COULD NOT BE DELETED; delete it by hand: it costs money" >&2
  fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

git archive --format=tar.gz --output="$archive/ssb-jax.tar.gz" HEAD

wait_until_active() {
  local now
  while :; do
    now=$(state)
    case $now in
      ACTIVE) return 0 ;;
      FAILED) # no quota, or nothing free in time: the next attempt would fare no better
        queued describe "$name" --format='value(state)' >&2
        exit 1 ;;
      SUSPENDED | '') return 1 ;;
    esac
    echo "launch: $name is $now" >&2
    sleep "$poll_seconds"
  done
}

for attempt in $(seq 1 "$attempts"); do
  case $(state) in
    FAILED | SUSPENDED) queued delete "$name" --force ;;
  esac
  if [ -z "$(state)" ]; then
    queued create "$name" --node-id="$name" --accelerator-type=@accelerator@ --runtime-version=@runtime@ @tier@
  fi
  if wait_until_active; then
    # A host that cannot be reached is on its way out, or will be back.
    if ! copy || ! workers @install@; then
      sleep "$poll_seconds"
      continue
    fi
    workers @run@ || true
    # The status of each worker's `ssb`.
    statuses=$(workers 'cat ssb-status' | tr '\n' ' ') || statuses=lost
    echo "launch: attempt $attempt ended with ${statuses:=lost}" >&2
    case " $statuses" in
      *' 1 '* | *' 2 '*) exit 1 ;; # an error, which the log says
      *[!0\ ]*) ;;                 # stopped, killed or lost
      *) exit 0 ;;
    esac
  elif [ "$spot" != yes ]; then
    exit 1
  fi
done
echo "launch: not done after $attempts attempts; the same command goes on from here" >&2
exit 75
