#!/usr/bin/env bash
# The commands that tpu_vm.sh runs on each host of a TPU. Do not call it by hand.
#
#   install   creates an environment with the pinned requirements, jax[tpu] and gcsfs
#   run ARGS  starts the program unless it is running; follows its log and ends with "ppa_jax: exit status N"
#   running   whether the program is running
#   stop      sends SIGTERM to the program, which saves; returns when it has exited
#
# The program runs in a process group of its own, so that a broken connection does not end it.
set -euo pipefail
cd "$(dirname "$0")/.."

# A program that has written its status has ended, even if its process still exists as a zombie.
running() { [[ -f run.pid && ! -f run.status ]] && kill -0 "$(< run.pid)" 2> /dev/null; }

case $1 in
  install)
    if [[ ! -x .venv/bin/python ]]; then
      # The images of the hosts bring an older Python than this project needs.
      python3 -m pip install --quiet --user uv
      python3 -m uv venv --quiet --seed --python 3.11 .venv
    fi
    .venv/bin/python -m pip install --quiet --requirement requirements.txt --constraint constraints.txt "jax[tpu]" gcsfs
    ;;
  run)
    shift
    if ! running; then
      rm -f run.status
      : > run.log # here, not in the background, where it would come too late for tail
      # The trap keeps this shell alive to write the status when `stop` signals the whole group.
      # shellcheck disable=SC2016 # expanded by the inner shell
      setsid nohup bash -c 'trap : TERM; .venv/bin/python -m ppa_jax.main "$@"; echo $? > run.status' run "$@" \
        >> run.log 2>&1 < /dev/null &
      echo $! > run.pid
    fi
    tail --pid="$(< run.pid)" --lines=+1 --follow run.log
    echo "ppa_jax: exit status $(cat run.status 2> /dev/null || echo unknown)"
    ;;
  running) running ;;
  stop)
    if running; then
      kill -TERM -- "-$(< run.pid)"
      tail --pid="$(< run.pid)" --follow /dev/null
    fi
    ;;
  *) echo "$0: install, run, running or stop" >&2; exit 2 ;;
esac
