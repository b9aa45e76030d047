"""Runs a job: `python -m ppa_jax.main --config=configs/ppa.py --workdir=runs/x [--config.field=value ...]`.

`--config` names a Python file or one of the recipes that are installed (ppa, pretrain, xnli, mlqa, tagging, parsing,
evaluate, align_mlm, layer_ablation), and `--config=ppa:demo` one of its modes. `--config=FILE --help` shows its fields.
`ppa-jax push runs/x --repo=me/model` uploads a result to the Hugging Face Hub.
Repeating the command resumes the run. Exit status: 0 done; 2 a mistake in the input (one line says which); 130 or 143
stopped by SIGINT or SIGTERM after saving; after any other status the launchers restart the command.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

import ppa_jax
from ppa_jax import config as configs
from ppa_jax import config_help, storage
from ppa_jax.config import Config
from ppa_jax.errors import NO_PLACE, NO_ROOM, UserError
from ppa_jax.interop import hub
from ppa_jax.log_lines import answer
from ppa_jax.training import hosts
from ppa_jax.training.loop import Stopped
from ppa_jax.training.memory import keep_freed_memory
from ppa_jax.training.sharding import check_platform
from ppa_jax.training.workdir import check_job

JOBS = {
    "align": "ppa_jax.jobs.align.run",
    "pretrain": "ppa_jax.jobs.pretrain",
    "evaluate": "ppa_jax.jobs.evaluate",
    "finetune": "ppa_jax.jobs.finetune.run",
    "align_mlm": "ppa_jax.studies.align_mlm.run",
    "ablate_layers": "ppa_jax.studies.layer_ablation.run",
}  # each module has run(config, workdir)


def parse(arguments: Sequence[str]) -> tuple[Config, str]:
    """(configuration, workdir) of the command line. `--help` and `--version` print and raise SystemExit.

    The flags are absl's, in a `FlagValues` of their own: `absl.app.run` parses only once per process, and reports a
    mistake in several lines with status 1.

    Raises:
      UserError: an argument of another form, or `--config` or `--workdir` is missing; as `config.load`.
    """
    values = flags.FlagValues()
    values.set_gnu_getopt()
    flags.DEFINE_string("config", None, "FILE[:MODE] or RECIPE[:MODE]", flag_values=values)
    flags.DEFINE_string("workdir", None, "where the run is kept", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    flags.DEFINE_bool("version", False, "show the version", flag_values=values)
    try:
        _, *overrides = values(["", *arguments], known_only=True)
    except (flags.Error, ValueError) as error:
        raise UserError(f"{error}; there are --config=FILE, --workdir=DIR and --config.field=value") from error
    if values.version:
        print(ppa_jax.__version__)
        raise SystemExit
    if values.help:
        print(config_help.describe(values.config) if values.config else __doc__)
        raise SystemExit
    for name in ("config", "workdir"):
        if not values[name].value:
            raise UserError(f"--{name} is missing; e.g. --config=configs/ppa.py --workdir=runs/x")
    return configs.load(values.config, overrides), as_workdir(values.workdir)


def as_workdir(path: str | os.PathLike) -> str:
    """The normalised path, `~` expanded: the shell does not expand it after a `=`."""
    path = os.fspath(path)
    return path if "://" in path else os.path.normpath(os.path.expanduser(path))


def run(config: Config, workdir: str) -> int:
    """Runs the configuration's job in a workdir of `as_workdir`; returns the exit status.

    Raises:
      UserError: a mistake in the input, or a full disk.
    """
    if config.get("job") not in JOBS:
        raise UserError(f"config.job={config.get('job')}: must be one of {', '.join(JOBS)}")
    if storage.in_bucket(workdir):
        workdir = storage.checked(workdir, "--workdir=")
    elif Path(workdir).exists() and not Path(workdir).is_dir():
        raise UserError(f"--workdir={workdir}: is a file; give a directory")
    if config.get("plan") == "false":
        config.plan = ""
    is_plan = bool(config.get("plan"))  # uses no workdir
    if not config.get("mesh", {}).get("distributed"):  # with several processes, they must connect first
        check_platform()
    try:
        with hosts.exit_on_peer_loss():
            if not is_plan:
                check_job(workdir, config.job)  # before any data is read
            status = 0
            try:
                importlib.import_module(JOBS[config.job]).run(config, workdir)
            except Stopped as stopped:
                print(stopped, file=sys.stderr)
                status = stopped.status
            hosts.barrier("files written")  # at exit, JAX waits for less time than a slow disk may need
            return status
    except OSError as error:
        # Our own code reports more about a failed write; this is for files that other packages write.
        if error.errno not in NO_ROOM + NO_PLACE:
            raise
        way_out = "free some space or give another --workdir" if error.errno in NO_ROOM else "give another --workdir"
        raise UserError(f"{error.filename or workdir}: {error.strerror}; {way_out}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, that of the process by default: runs the job and returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["push"]:
        return answer(lambda: hub.push_command(arguments[1:]))
    keep_freed_memory()
    try:
        return answer(lambda: run(*parse(arguments)))
    except KeyboardInterrupt:
        print("stopped by SIGINT; the same command resumes from the last checkpoint, if there is one", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
