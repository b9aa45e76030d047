"""Version, commit and processor, from a checkout and from an installation."""

import json
import subprocess
from types import SimpleNamespace

import pytest

import ppa_jax
from ppa_jax.training import provenance


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package below a directory that is no checkout, and what pip recorded of its origin."""
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "ppa_jax/training/provenance.py"))
    origin = {}
    distribution = SimpleNamespace(read_text=lambda name: json.dumps(origin) if origin else None)
    monkeypatch.setattr(provenance.metadata, "distribution", lambda name: distribution)
    provenance.made_with.cache_clear()
    yield SimpleNamespace(root=tmp_path, origin=origin)
    provenance.made_with.cache_clear()


def test_the_commit_of_a_checkout_says_whether_it_was_changed(installed):
    def git(*arguments):
        command = ["git", "-C", str(installed.root), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (installed.root / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    commit = git("rev-parse", "--short", "HEAD")
    assert provenance.commit() == commit
    (installed.root / "file").write_text("2")
    assert provenance.commit() == f"{commit}-dirty"
    assert provenance.made_with()["ppa_jax"] == f"{ppa_jax.__version__}, commit {commit}-dirty"


def test_the_commit_of_an_installation(installed):
    assert provenance.commit() == "" and provenance.made_with()["ppa_jax"] == ppa_jax.__version__
    installed.origin.update(url="https://host/repo", vcs_info={"vcs": "git", "commit_id": "0123456789abcdef"})
    assert provenance.commit() == "012345678"


def test_the_processor(monkeypatch):
    assert " x " in provenance.processor()
    gpu = SimpleNamespace(platform="gpu", device_kind="NVIDIA H200")
    monkeypatch.setattr(provenance.jax, "devices", lambda: [gpu] * 8)
    monkeypatch.setattr(provenance.jax, "device_count", lambda: 8)
    assert provenance.processor() == "8 x NVIDIA H200"
