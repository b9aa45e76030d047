"""Every test runs on 8 CPU devices; tests on real data skip when the data is absent."""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest  # noqa: E402

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real corpora and a small pretrained model, kept beside the checkout; never part of the project."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no ../shared: real data is not here")
    return SHARED
