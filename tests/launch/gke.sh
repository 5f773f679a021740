#!/usr/bin/env bash
# `ssb` on a TPU slice of a GKE cluster that has the JobSet controller: apply, stream the first host, delete.
# Applied twice, it goes on with what is there.
set -euo pipefail

name=ssb namespace=default
manifest='apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: ssb
spec:
  failurePolicy:
    maxRestarts: 100
    rules:
    - name: error
      action: FailJobSet
      onJobFailureReasons:
      - PodFailurePolicy
  replicatedJobs:
  - name: hosts
    replicas: 1
    template:
      spec:
        parallelism: 4
        completions: 4
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: ssb
              operator: In
              values:
              - 1
              - 2
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 60
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: tpu-v5-lite-podslice
              cloud.google.com/gke-tpu-topology: 4x4
              cloud.google.com/gke-spot: '"'"'true'"'"'
            containers:
            - name: ssb
              image: registry/ssb-jax:1
              command:
              - ssb
              - run
              - configs/qwen2.5-3b-gsm8k.yaml
              - --out
              - /runs/it'"'"'s
              env:
              - name: SSB_COORDINATOR
                value: auto
              resources:
                limits:
                  google.com/tpu: 4
              volumeMounts:
              - name: runs
                mountPath: /runs
            volumes:
            - name: runs
              persistentVolumeClaim:
                claimName: runs
'
echo 'cost: 16 chips x 0.5 = 8.00 an hour for as long as they exist' >&2

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
  sleep 10
done
echo "launch: $name: $now" >&2
[ "$now" = Completed ]
