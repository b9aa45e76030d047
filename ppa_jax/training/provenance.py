"""What a result was made with: the version and commit of this package, and the processor."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from importlib import metadata
from pathlib import Path

import jax

import ppa_jax


@functools.cache
def made_with() -> dict[str, str]:
    """{"ppa_jax": "0.1.0, commit 1a2b3c4", "processor": "8 x NVIDIA H200"}; without a commit where it is unknown."""
    version = f"{ppa_jax.__version__}, commit {found}" if (found := commit()) else ppa_jax.__version__
    return {"ppa_jax": version, "processor": processor()}


def commit() -> str:
    """Of the checkout ("-dirty" with changes) or of `pip install git+URL`; "" for another installation."""
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):  # no git, or not this user's repository
            return ""
    try:
        origin = json.loads(metadata.distribution("ppa_jax").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return ""
    return origin.get("vcs_info", {}).get("commit_id", "")[:9]


def processor() -> str:
    """The accelerators of all processes, or the cores of this machine with their name where Linux has it."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{jax.device_count()} x {device.device_kind}"
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else 'CPU core'}"
