#!/usr/bin/env bash
# Trains on GPUs of a SLURM cluster, with one process per GPU; requeued at the time limit and after a crash.
#
#   sbatch launch/slurm.sh --config=configs/ppa.py --workdir=/shared/runs/x --config.init=DIR --config.data.pairs=...
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh ...
#
# Submit it from the root of the repository. Options of sbatch before the script's name replace those below. All nodes
# must have access to the workdir and to data given as files.
#
# Processes and GPUs. With as many tasks as GPUs, JAX assigns GPU i of a node to its task i: do not set --gpus-per-task,
# which would hide the other GPUs. With one task per node, each task uses all GPUs of its node. With a single task,
# no processes are connected, and it uses all GPUs of the node.
#
# 120 seconds before the time limit SLURM sends SIGTERM to the tasks; they save and exit with 143, and the job is
# requeued. After a crash it is requeued, too, until it has been started RESTARTS + 1 times. It is not requeued when it
# is done (0), the input is wrong (2), or the job was cancelled.
#
# Variables:
#   PYTHON    the interpreter (.venv/bin/python)
#   RESTARTS  how often a crashed job is requeued (10)
#
#SBATCH --job-name=ppa
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch}"

PYTHON=${PYTHON:-.venv/bin/python}
RESTARTS=${RESTARTS:-10}

connect=()
if ((SLURM_NTASKS > 1)) && [[ "$*" =~ --config=([^ ]*/)?(evaluate|align_mlm)(\.py|:|\ |$) ]]; then
  echo "$0: configs/${BASH_REMATCH[2]}.py runs in one process: sbatch --nodes=1 --ntasks-per-node=1" >&2
  exit 2
fi
if ((SLURM_NTASKS > 1)); then
  connect=(--config.mesh.distributed=true)
  if ((SLURM_NTASKS == SLURM_JOB_NUM_NODES)); then
    # Otherwise JAX takes one GPU for each task under SLURM.
    JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((${SLURM_GPUS_ON_NODE:-1} - 1)))
    export JAX_LOCAL_DEVICE_IDS
  fi
fi

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it over from sbatch by itself
# Tasks exit one after the other, and the last may still be saving when the first has exited with 143: do not kill it.
# If one dies, JAX ends the others when its heartbeat has been missing for 100 seconds.
status=0
srun --kill-on-bad-exit=0 "$PYTHON" -m ppa_jax.main "$@" "${connect[@]}" || status=$?

requeue() {
  # A cancelled job is no longer running: let it go.
  [[ $(squeue --noheader --job "$SLURM_JOB_ID" --format=%T) == RUNNING ]] || exit "$status"
  echo "$0: exit status $status; requeued" >&2
  scontrol requeue "$SLURM_JOB_ID"
}

case $status in
  0 | 2) ;;
  143) requeue ;;
  *) if ((${SLURM_RESTART_COUNT:-0} < RESTARTS)); then requeue; fi ;;
esac
exit "$status"
