"""Runs a job: `python -m ppa_jax.main --config=configs/ppa.py --workdir=runs/x [--config.field=value ...]`.

The configuration file says which job and documents its fields; `--config=FILE:MODE` picks one of its modes. The same
command, given again, goes on where the run stopped. Exit status: 0 done, 2 a mistake in the input (one line says
which), 130 or 143 stopped by SIGINT or SIGTERM after saving, 75 another host of the run was lost, or another start may
do.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from pathlib import Path

from ppa_jax import config as configs
from ppa_jax import storage
from ppa_jax.errors import NO_PLACE, NO_ROOM, UserError
from ppa_jax.log_lines import answer
from ppa_jax.training import bucket, identity
from ppa_jax.training.loop import ended_with_the_others, wait_for_hosts
from ppa_jax.training.memory import keep_freed_memory

JOBS = {
    "align": "ppa_jax.jobs.align_run",
    "pretrain": "ppa_jax.jobs.pretrain",
    "evaluate": "ppa_jax.jobs.evaluate",
    "finetune": "ppa_jax.jobs.finetune_run",
    "align_mlm": "ppa_jax.jobs.align_mlm",
    "ablate_layers": "ppa_jax.jobs.ablate_layers",
}  # each module has run(config, workdir) -> exit status


def parse(arguments: list[str]) -> tuple[str, str, list[tuple[str, str]]]:
    """(config file, workdir, overrides) of the command line.

    Raises:
      UserError: an argument of another form, or one of the two missing.
    """
    given: dict[str, str] = {}
    overrides: list[tuple[str, str]] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--config", "--workdir"):  # as many command lines have it, with a space
            argument = f"{argument}={next(rest, '')}"
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            raise UserError(f"{argument}: unexpected; arguments have the form --config.field=value")
        if name.startswith("config."):
            overrides.append((name.removeprefix("config."), value if equals else "true"))
        elif name in ("config", "workdir") and value:
            given[name] = value
        else:
            raise UserError(f"{argument}: unknown; there are --config=FILE, --workdir=DIR and --config.field=value")
    for name in ("config", "workdir"):
        if name not in given:
            raise UserError(f"--{name} is missing; e.g. --config=configs/ppa.py --workdir=runs/x")
    workdir = given["workdir"]
    if "://" not in workdir:  # spelled in one way: the shell leaves `~` after a `=` alone
        workdir = os.path.normpath(os.path.expanduser(workdir))
    return given["config"], workdir, overrides


def run(arguments: list[str]) -> int:
    """Runs the job that the arguments ask for; returns the exit status.

    Raises:
      UserError: a mistake in the input, or a disk that takes no more.
    """
    file, workdir, overrides = parse(arguments)
    config = configs.load(file, overrides)
    if config.get("job") not in JOBS:
        raise UserError(f"config.job={config.get('job')}: must be one of {', '.join(JOBS)}")
    if "://" in workdir and not storage.in_bucket(workdir):
        raise UserError(f"--workdir={workdir}: give a directory, or a bucket's address, gs://BUCKET/DIRECTORY")
    if Path(workdir).exists() and not Path(workdir).is_dir():
        raise UserError(f"--workdir={workdir}: is a file; give a directory")
    if config.get("plan") == "false":
        config.plan = ""
    is_plan = bool(config.get("plan"))  # it touches no workdir
    try:
        place = contextlib.nullcontext(workdir) if is_plan else bucket.local(workdir)
        with place as directory, ended_with_the_others():
            if not is_plan:
                identity.check_job(directory, config.job)  # before anything is read
            status = importlib.import_module(JOBS[config.job]).run(config, directory)
            wait_for_hosts("its files", read=False)  # JAX has less patience at the exit than a slow disk may want
            return status
    except OSError as error:
        # Whoever writes files says more where it can; this is for those, of other packages, that do not.
        if error.errno not in NO_ROOM + NO_PLACE:
            raise
        way_out = "free some space or give another --workdir" if error.errno in NO_ROOM else "give another --workdir"
        raise UserError(f"{error.filename or workdir}: {error.strerror}; {way_out}") from error


def main(arguments: list[str]) -> int:
    """The command line: runs the job and returns the exit status."""
    if {"-h", "--help"} & {*arguments}:
        print(__doc__)
        return 0
    keep_freed_memory()
    try:
        return answer(lambda: run(arguments))
    except KeyboardInterrupt:
        print(
            "stopped by SIGINT; the same command goes on, or begins again where there is no checkpoint", file=sys.stderr
        )
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
