"""What is installed: the commands and the recipes, and dependencies whose ranges hold the versions tested with."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_an_installed_package_finds_its_recipes(tmp_path):
    """From an empty directory, by name."""
    if Version(version("setuptools")) < Version("77"):
        pytest.skip("this setuptools cannot build the package")
    tree = tmp_path / "tree"  # a build leaves its work beside the sources
    for name in ("ppa_jax", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, f"--target={tmp_path / 'installed'}", tree], check=True, capture_output=True)
    (tmp_path / "empty").mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    environment.pop("PYTHONSAFEPATH", None)
    for command, says in ((["--config=ppa:demo", "--help"], "--config.train.steps=400 "), (["--version"], "0.")):
        done = subprocess.run(
            [sys.executable, tmp_path / "installed/bin/ppa-jax", *command],
            cwd=tmp_path / "empty", env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0 and says in done.stdout, done.stderr
    assert (tmp_path / "installed/bin/ppa-jax-convert").is_file()
    assert not (tmp_path / "installed/configs").exists(), "a package of that name would be in everybody's way"


def test_the_versions_tested_with_are_in_the_ranges():
    ranges = {given.name: given.specifier for given in map(Requirement, PROJECT["project"]["dependencies"])}
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    pins = {pin.name: next(iter(pin.specifier)).version for pin in map(Requirement, filter(None, lines))}
    assert ranges.keys() == pins.keys()
    for name, pinned in pins.items():
        assert ranges[name].contains(pinned), name
