#!/usr/bin/env bash
# `ssb` on a TPU slice of a GKE cluster that has the JobSet controller: apply, stream the first host, delete.
# Applied twice, it goes on with what is there.
set -euo pipefail

name=@name@ namespace=@namespace@
manifest=@manifest@
echo @cost@ >&2

job() { kubectl "$@" --namespace="$namespace"; }
status() { job get jobset "$name" --output='jsonpath={.status.terminalState}'; }
first="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"

ours=perhaps
trap '[ $ours = no ] || job delete jobset "$name" --ignore-not-found' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if ! job apply --filename=- <<<"$manifest"; then
  ours=no # of another plan, perhaps: it cannot be changed, and is not ours to delete
  exit 1
fi

until now=$(status) && [ -n "$now" ]; do
  job logs --follow --selector="$first" --tail=-1 || true # no pod yet, or pods restarting
  sleep @poll_seconds@
done
echo "launch: $name: $now" >&2
[ "$now" = Completed ]
