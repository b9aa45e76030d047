#!/usr/bin/env bash
# Trains on a Cloud TPU VM, one host or a slice of many, and requests new machines after a preemption.
#
#   export NAME=ppa ZONE=us-west4-a ACCELERATOR=v5litepod-16
#   launch/tpu_vm.sh --config=configs/ppa.py --workdir=gs://MY_BUCKET/runs/x \
#       --config.init=bert-base-multilingual-cased --config.data.pairs=en-de=gs://MY_BUCKET/en-de.tsv
#
# Run it on your own machine, with gcloud logged in; for several hosts gcloud needs an ssh agent that has its key
# (`ssh-add ~/.ssh/google_compute_engine`). It requests the machines as a queued resource, waits for them, copies the
# files of the repository that git does not ignore to every host, installs the pinned requirements with jax[tpu], and
# starts ppa_jax.main with the arguments on all hosts, with --config.mesh.distributed=true. The program continues if this
# script or the connection ends: the same command attaches to it again. Ctrl-C here stops the run, which saves first. The
# machines remain when the run ends, and cost money until they are deleted:
#
#   gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force
#
# The workdir must be in a bucket, preferably in the zone's region, or on a disk that all hosts mount under the same path,
# such as Filestore. Data and models given as files must be in a bucket, too, or under the same path on every host, where
# MOUNT copies them or mounts the disk. After a preemption new machines are requested, and the run resumes from its
# newest checkpoint.
#
# Variables:
#   ZONE         required
#   NAME         of the queued resource and of its node (ppa)
#   PROJECT      (gcloud's default)
#   ACCELERATOR  (v5litepod-8: one host)
#   RUNTIME      software of the hosts (v2-alpha-tpuv5-lite, for v5e; v6e: v2-alpha-tpuv6e)
#   SPOT         true: preemptible machines, false: on demand (true)
#   MOUNT        command that copies data or mounts a shared disk; every host runs it before each start, in the program's
#                shell, so it may also export variables such as HF_TOKEN or JAX_COMPILATION_CACHE_DIR (none)
#   RESTARTS     maximum number of restarts (100)
#   PAUSE        seconds between two checks of the request, and before a restart (30)
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ "$*" =~ --config=([^ ]*/)?(evaluate|align_mlm)(\.py|:|\ |$) ]]; then
  echo "$0: configs/${BASH_REMATCH[2]}.py runs in one process, on one machine: launch/one_machine.sh" >&2
  exit 2
fi
ZONE=${ZONE:?give the zone, e.g. ZONE=us-west4-a}
NAME=${NAME:-ppa}
ACCELERATOR=${ACCELERATOR:-v5litepod-8}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
SPOT=${SPOT:-true}
MOUNT=${MOUNT:-:}
RESTARTS=${RESTARTS:-100}
PAUSE=${PAUSE:-30}
FAILURES=20 # of calls about the request; a wrong project or zone never gets better

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

tpu() { gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}; }
# A lost host does not close the connection: these options make ssh detect it.
on_all_hosts() {
  tpu tpu-vm ssh "$NAME" --worker=all --command="$1" \
    --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=6
}

# shellcheck disable=SC2317 # called by a trap
stop() {
  trap 'exit 130' INT TERM
  echo "$0: stopping; the run saves first (once more: without waiting for it)" >&2
  on_all_hosts "bash ppa_jax/launch/tpu_host.sh stop" || true
  exit 130
}

# A failed call about the request is retried.
failed() {
  if ((++failures > FAILURES)); then
    echo "$0: $failures calls about $NAME failed; see the errors above" >&2
    exit 1
  fi
}

# Requests the machines if necessary, and returns when they are ready.
machines() {
  local spot='' state failures=0
  if [[ $SPOT == true ]]; then spot=--spot; fi
  while true; do
    # Only an answer that there is none is one: a call that fails is made again, or paid machines would be asked for twice.
    state=$(tpu queued-resources describe "$NAME" --format="value(state.state)" 2> "$scratch/error") ||
      if grep -q NOT_FOUND "$scratch/error"; then state=ABSENT; else state=UNKNOWN; cat "$scratch/error" >&2; fi
    case $state in
      ACTIVE) return ;;
      ABSENT)
        tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$ACCELERATOR" \
          --runtime-version="$RUNTIME" ${spot:+"$spot"} || failed
        ;;
      UNKNOWN) failed ;;
      SUSPENDED) tpu queued-resources delete "$NAME" --force --quiet || failed ;; # preempted: its machines are gone
      FAILED)
        echo "$0: the request failed; see gcloud compute tpus queued-resources describe $NAME --zone=$ZONE" >&2
        exit 1
        ;;
    esac
    echo "$0: $NAME was $state; looking again in $PAUSE s" >&2
    sleep "$PAUSE"
  done
}

# Installs code and environment on every host, except where the program is running.
install() {
  tpu tpu-vm scp "$scratch/ppa_jax.tar.gz" "$NAME:ppa_jax.tar.gz" --worker=all &&
    on_all_hosts "bash ppa_jax/launch/tpu_host.sh running 2> /dev/null || {
    mkdir -p ppa_jax && tar -xzf ppa_jax.tar.gz -C ppa_jax && bash ppa_jax/launch/tpu_host.sh install; }"
}

run() {
  local arguments
  arguments=$(printf '%q ' "$@" --config.mesh.distributed=true)
  on_all_hosts "$MOUNT && bash ppa_jax/launch/tpu_host.sh run $arguments" | tee "$scratch/log"
}

git ls-files --cached --others --exclude-standard -z | tar --null --files-from=- -czf "$scratch/ppa_jax.tar.gz"
trap stop INT TERM
for ((start = 0; start <= RESTARTS; start++)); do
  machines
  # Each of these fails when the machines are preempted meanwhile: the next turn asks for new ones.
  : > "$scratch/log"
  if install; then run "$@" & wait $! || true; fi
  # Every host ends with this line. Hosts that lost another one end in other ways.
  statuses=$(sed -n 's/^.*ppa_jax: exit status \([0-9]*\).*$/\1/p' "$scratch/log" | sort -u)
  if [[ $statuses == 0 ]]; then exit 0; fi
  if grep -qx 2 <<< "$statuses"; then exit 2; fi
  echo "$0: ended with ${statuses:-no status}; start $((start + 2)) in $PAUSE s" >&2
  sleep "$PAUSE"
done
echo "$0: given up after $((RESTARTS + 1)) starts" >&2
exit 1
