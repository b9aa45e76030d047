"""The launch scripts with programs in the place of Python, SLURM and gcloud: when do they start again, and how?"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import pytest
import yaml

from ppa_jax.errors import UserError
from ppa_jax.main import parse
from ppa_jax.training import hosts as hosts_of_run

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))

# Notes how it was called, and ends with the next of the statuses in the file `statuses`; `wait` instead of a number
# saves for a moment when it gets SIGTERM, and leaves as the real program does.
PROGRAM = """#!/usr/bin/env bash
cd "$(dirname "$0")"
if [[ $2 == pip ]]; then exit 0; fi
printf '%s\\n' "$*" >> calls
env > environment
status=$(head -1 statuses)
sed -i 1d statuses
if [[ $status == wait ]]; then
  trap 'sleep 0.3; echo saved > saved; exit 143' TERM
  touch waiting
  echo waits
  for _ in {1..100}; do sleep 0.1; done
fi
exit "$status"
"""
ARGUMENTS = ["--config=configs/ppa.py", "--config.data.pairs=en-de=a b.txt|b $x.txt"]


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def program(tmp_path):
    """Makes the stand-in for Python; its calls are lines of `calls` beside it."""

    def make(*statuses, folder=tmp_path):
        executable(folder / "python", PROGRAM)
        (folder / "statuses").write_text("".join(f"{status}\n" for status in statuses))
        return folder / "python"

    return make


def calls(folder):
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def launch(script, environment, *, timeout=30, arguments=ARGUMENTS):
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments],
        env=os.environ | {"PAUSE": "0"} | environment,
        capture_output=True, text=True, timeout=timeout, cwd="/",
    )  # fmt: skip


def wait_for(path):
    for _ in range(200):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} never appeared")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)


# ---- one machine ----


def test_a_crash_starts_the_same_command_again(program, tmp_path):
    done = launch("one_machine.sh", {"PYTHON": str(program(1, 137, 139, 0))})
    assert done.returncode == 0, done.stderr
    assert calls(tmp_path) == [" ".join(["-m", "ppa_jax.main", *ARGUMENTS])] * 4


@pytest.mark.parametrize("status", [0, 2, 130, 143])
def test_done_wrong_or_stopped_is_final(program, tmp_path, status):
    assert launch("one_machine.sh", {"PYTHON": str(program(status, 0))}).returncode == status
    assert len(calls(tmp_path)) == 1


def test_a_program_that_always_crashes_is_given_up(program, tmp_path):
    done = launch("one_machine.sh", {"PYTHON": str(program(*[1] * 9)), "RESTARTS": "3"})
    assert done.returncode == 1 and "after 4 starts" in done.stderr
    assert len(calls(tmp_path)) == 4


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_saving_awaited(program, tmp_path, signum):
    environment = os.environ | {"PYTHON": str(program("wait", 0)), "PAUSE": "0"}
    # A background job of a shell has SIGINT off, and so would have the script.
    on = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    with subprocess.Popen(["bash", LAUNCH / "one_machine.sh"], env=environment, preexec_fn=on) as script:
        wait_for(tmp_path / "waiting")
        script.send_signal(signum)
        assert script.wait(timeout=20) == 143
    assert (tmp_path / "saved").exists()
    assert len(calls(tmp_path)) == 1


def test_a_missing_environment_is_one_line():
    done = launch("one_machine.sh", {"PYTHON": "/no/such/python"})
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "make .venv/installed" in done.stderr


# ---- SLURM ----


@pytest.fixture
def slurm(program, tmp_path):
    """Runs the job script with srun and its like replaced; returns the exit status and whether it was requeued."""

    def run(*statuses, state="RUNNING", **variables):
        tools = tmp_path / "bin"
        executable(tools / "srun", '#!/usr/bin/env bash\nshift\nexec "$@"\n')
        executable(tools / "squeue", f"#!/usr/bin/env bash\necho {state}\n")
        executable(tools / "scontrol", f"#!/usr/bin/env bash\necho requeued > {tmp_path}/requeued\n")
        job = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_JOB_NUM_NODES": "2"}
        path = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": str(program(*statuses))}
        done = launch("slurm.sh", job | path | variables)
        return done.returncode, (tmp_path / "requeued").exists()

    return run


@pytest.mark.parametrize(
    ("status", "state", "starts", "requeued"),
    [
        (0, "RUNNING", "0", False),
        (2, "RUNNING", "0", False),
        (143, "RUNNING", "999", True),  # the time limit: as often as it takes
        (134, "RUNNING", "0", True),
        (134, "RUNNING", "10", False),
        (143, "COMPLETING", "0", False),  # cancelled
    ],
)
def test_what_goes_back_into_the_queue(slurm, status, state, starts, requeued):
    assert slurm(status, state=state, SLURM_RESTART_COUNT=starts) == (status, requeued)


@pytest.mark.parametrize(
    ("tasks", "nodes", "connected", "devices"),
    [("8", "2", True, None), ("2", "2", True, "0,1,2,3"), ("1", "1", False, None)],
)
def test_processes_and_their_gpus(slurm, tmp_path, tasks, nodes, connected, devices):
    slurm(0, SLURM_NTASKS=tasks, SLURM_JOB_NUM_NODES=nodes, SLURM_GPUS_ON_NODE="4")
    expected = ARGUMENTS + ["--config.mesh.distributed=true"] * connected
    assert calls(tmp_path) == [" ".join(["-m", "ppa_jax.main", *expected])]
    given = dict(line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines() if "=" in line)
    assert given.get("JAX_LOCAL_DEVICE_IDS") == devices


@pytest.mark.parametrize("script", ["slurm.sh", "tpu_vm.sh"])
@pytest.mark.parametrize("config", ["configs/evaluate.py", "evaluate"])
def test_a_job_of_one_process_is_refused_before_machines_are_asked_for(script, config):
    environment = {"SLURM_SUBMIT_DIR": str(LAUNCH.parent), "SLURM_NTASKS": "4", "ZONE": "z"}
    done = launch(script, environment, arguments=[f"--config={config}", "--workdir=x"])
    assert done.returncode == 2 and "configs/evaluate.py runs in one process" in done.stderr


# ---- TPU ----

GCLOUD = """#!/usr/bin/env bash
# A cloud of one host, whose home is HOST. `states` holds what describe answers, the last one for ever.
printf '%s %s\\n' "$3" "$4" >> "$HOST/gcloud"
if [[ -f "$HOST/fails" && "$3 $4" == "$(< "$HOST/fails")" ]]; then rm "$HOST/fails"; exit 1; fi # once
case "$3 $4" in
  "queued-resources describe")
    state=$(head -1 "$HOST/states")
    if (($(wc -l < "$HOST/states") > 1)); then sed -i 1d "$HOST/states"; fi
    case $state in
      ABSENT) echo "ERROR: (gcloud) NOT_FOUND: Requested entity was not found" >&2; exit 1 ;;
      503) echo "ERROR: (gcloud) HTTPError 503: Service unavailable" >&2; exit 1 ;;
    esac
    echo "$state"
    ;;
  "tpu-vm scp") cp "$5" "$HOST/ppa_jax.tar.gz" ;;
  "tpu-vm ssh")
    for argument in "$@"; do
      if [[ $argument == --command=* ]]; then cd "$HOST" && exec bash -c "${argument#--command=}"; fi
    done
    ;;
esac
"""


@pytest.fixture
def tpu(program, tmp_path):
    """Runs tpu_vm.sh against the cloud above."""

    def run(*statuses, states=("ACTIVE",), fails="", **variables):
        host = tmp_path / "host"
        python = program(*statuses, folder=host / "ppa_jax" / ".venv" / "bin")
        (host / "states").write_text("".join(f"{state}\n" for state in states))
        (host / "fails").write_text(fails)
        tools = executable(tmp_path / "bin" / "gcloud", GCLOUD).parent
        path = {"PATH": f"{tools}:{os.environ['PATH']}", "HOST": str(host), "ZONE": "z"}
        done = launch("tpu_vm.sh", path | variables)
        asked = [line for line in (host / "gcloud").read_text().splitlines() if "describe" not in line]
        return done.returncode, calls(python.parent), asked

    return run


TPU_COMMAND = " ".join(["-m", "ppa_jax.main", *ARGUMENTS, "--config.mesh.distributed=true"])


def test_a_tpu_is_asked_for_and_the_arguments_arrive_whole(tpu):
    status, made, asked = tpu(0, states=("ABSENT", "WAITING_FOR_RESOURCES", "ACTIVE"))
    assert (status, made) == (0, [TPU_COMMAND])
    assert asked[0] == "queued-resources create" and asked.count("queued-resources create") == 1
    assert "queued-resources delete" not in asked


def test_a_preempted_tpu_is_replaced_and_the_command_goes_on(tpu):
    status, made, asked = tpu(1, 0, states=("ACTIVE", "SUSPENDED", "ABSENT", "ACTIVE"))
    assert (status, made) == (0, [TPU_COMMAND] * 2)
    assert [line for line in asked if "queued" in line] == ["queued-resources delete", "queued-resources create"]


def test_a_call_that_fails_asks_for_no_machines(tpu):
    status, made, asked = tpu(0, states=("503", "WAITING_FOR_RESOURCES", "503", "ACTIVE"))
    assert (status, made) == (0, [TPU_COMMAND]) and not [line for line in asked if "queued" in line]


@pytest.mark.parametrize("call", ["queued-resources delete", "queued-resources create"])
def test_a_call_that_fails_is_made_again(tpu, call):
    states = ("SUSPENDED", "SUSPENDED", "ABSENT", "ABSENT", "ACTIVE")
    status, made, asked = tpu(0, states=states, fails=call)
    assert (status, made) == (0, [TPU_COMMAND]) and asked.count(call) == 2


def test_no_old_code_runs_where_the_new_one_did_not_arrive(tpu):
    status, made, asked = tpu(0, fails="tpu-vm scp")
    assert (status, made) == (0, [TPU_COMMAND])
    assert asked[:2] == ["tpu-vm scp"] * 2  # nothing was run on the host between them


def test_a_request_that_can_never_be_looked_at_is_given_up(tpu):
    status, made, asked = tpu(0, states=("503",))
    assert (status, made) == (1, []) and not asked


def test_a_run_does_not_begin_where_its_directory_is_not_mounted(tpu):
    status, made, _ = tpu(0, RESTARTS="1", MOUNT="false")
    assert status == 1 and not made


def test_a_mistake_in_the_input_ends_it(tpu):
    status, made, _ = tpu(2, 0)
    assert status == 2 and len(made) == 1


def test_a_run_that_always_fails_is_given_up(tpu):
    status, made, _ = tpu(1, 1, 1, 1, RESTARTS="2")
    assert status == 1 and len(made) == 3


def test_a_program_that_wrote_its_status_is_not_running(tmp_path):
    """Though its process is still there, waiting to be collected."""
    home = tmp_path / "ppa_jax"
    shutil.copytree(LAUNCH, home / "launch")
    running = ["bash", str(home / "launch" / "tpu_host.sh"), "running"]
    (home / "run.pid").write_text(f"{os.getpid()}\n")
    assert subprocess.run(running).returncode == 0
    (home / "run.status").write_text("0\n")
    assert subprocess.run(running).returncode == 1


def test_a_host_attaches_to_its_program_and_stops_it(program, tmp_path):
    home = tmp_path / "ppa_jax"
    shutil.copytree(LAUNCH, home / "launch")
    python = program("wait", folder=home / ".venv" / "bin")
    host = ["bash", str(home / "launch" / "tpu_host.sh")]
    assert subprocess.run([*host, "running"]).returncode == 1
    first = subprocess.Popen([*host, "run", "x"], stdout=subprocess.DEVNULL)
    wait_for(python.parent / "waiting")
    assert subprocess.run([*host, "running"]).returncode == 0
    first.kill()  # the connection breaks: the program stays
    first.wait()
    with subprocess.Popen([*host, "run", "x"], stdout=subprocess.PIPE, text=True) as second:
        assert second.stdout.readline() == "waits\n"  # it has found the program
        subprocess.run([*host, "stop"], check=True, timeout=20)
        said, _ = second.communicate(timeout=20)
    assert "ppa_jax: exit status 143" in said
    assert (python.parent / "saved").exists()
    assert calls(python.parent) == ["-m ppa_jax.main x"]


# ---- containers ----


def test_the_jobset_runs_the_program_and_stops_at_mistakes(monkeypatch):
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    (hosts,) = jobset["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    config, workdir = parse(container["args"])
    assert config.mesh.distributed and workdir.startswith("gs://")
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert job["parallelism"] == job["completions"] == int(environment["JAX_NUM_PROCESSES"])
    name = jobset["metadata"]["name"]
    assert environment["JAX_COORDINATOR_ADDRESS"] == f"{name}-{hosts['name']}-0-0.{name}:1234"
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value or "1")  # JAX_PROCESS_ID is the number of the pod
    connected = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: connected.append(given))
    hosts_of_run.initialize()
    assert connected == [{"num_processes": 2, "process_id": 1, "initialization_timeout": hosts_of_run.PATIENCE}]
    monkeypatch.setenv("JAX_PROCESS_ID", "one")
    with pytest.raises(UserError, match=r"cannot be connected .*'one'"):
        hosts_of_run.initialize()
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    assert pod["restartPolicy"] == "Never", "podFailurePolicy asks for it"


def test_the_files_of_the_image_exist_and_are_sent():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    sent = {line[1:] for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    assert set(copied) == sent and all((LAUNCH.parent / name).exists() for name in copied)
