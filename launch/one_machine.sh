#!/usr/bin/env bash
# Trains on this machine, on CPU or GPU, and restarts after a crash.
#
#   launch/one_machine.sh --config=configs/ppa.py --workdir=runs/x --config.init=DIR --config.data.pairs=en-de=FILE.tsv
#
# The arguments are those of `python -m ppa_jax.main`; relative paths start at the root of the repository. A run that
# was killed or crashed is restarted with the same command, which resumes from its newest checkpoint. It is not
# restarted when it is done (0), when the input is wrong (2), or when it was stopped (130, 143, or a signal to this
# script, which is passed on; the script exits once the run has saved). The exit status is that of the last start.
#
# Variables:
#   PYTHON    the interpreter (.venv/bin/python, which `make .venv/installed` makes)
#   RESTARTS  maximum number of restarts (20)
#   PAUSE     seconds before a restart (10)
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-.venv/bin/python}
RESTARTS=${RESTARTS:-20}
PAUSE=${PAUSE:-10}

command -v "$PYTHON" > /dev/null || { echo "$0: no $PYTHON; run 'make .venv/installed', or set PYTHON" >&2; exit 2; }

child=
stopped=false
# Without job control, a background job ignores SIGINT; SIGTERM has the same effect on the program.
trap 'stopped=true; [[ -z $child ]] || kill -TERM "$child" 2> /dev/null || true' INT TERM

# Leaves the program's exit status in `status`.
run() {
  "$PYTHON" -m ppa_jax.main "$@" &
  child=$!
  status=0
  wait "$child" || status=$?
  # A trapped signal ends `wait` early, while the program is still saving.
  while kill -0 "$child" 2> /dev/null; do
    status=0
    wait "$child" || status=$?
  done
  child=
}

for ((start = 0; ; start++)); do
  run "$@"
  case $status in 0 | 2 | 130 | 143) exit "$status" ;; esac
  if $stopped || ((start >= RESTARTS)); then
    echo "$0: exit status $status after $((start + 1)) starts" >&2
    exit "$status"
  fi
  echo "$0: exit status $status; start $((start + 2)) in $PAUSE s" >&2
  sleep "$PAUSE" &
  wait $! || true # a signal ends the pause
  if $stopped; then exit 143; fi
done
