"""What disks and libraries say of a failed write, in one line."""

import errno
import os

import pytest

from ppa_jax.errors import UserError, disk_errors

FULL = "x: no space left on the device (3 MB are needed); make room or go elsewhere (nothing is lost)"


@pytest.mark.parametrize(
    "error, kind, said",
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError, FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), UserError, FULL),
        (RuntimeError("write() failed: No space left on device; writing /x"), UserError, FULL),  # ArrayRecord
        (ValueError("UNAVAILABLE: write [os_error_code='28']"), UserError, FULL),  # TensorStore
        (Exception("I/O error: No space left on device (os error 28)"), UserError, FULL),  # safetensors
        (PermissionError(errno.EACCES, "no"), UserError, "x: cannot be written: Permission denied; go elsewhere"),
        (OSError(errno.ESTALE, "no"), RuntimeError, "x: cannot be written: Stale file handle; start again in a moment"),
        (FileNotFoundError(errno.ENOENT, "No such file"), FileNotFoundError, "[Errno 2]"),  # something was not read
        (ValueError("no number"), ValueError, "no number"),
        (UserError("y: wrong"), UserError, "y: wrong"),
    ],
)
def test_a_failed_write_is_one_line(error, kind, said):
    with (
        pytest.raises(kind) as caught,
        disk_errors("x", size=3_000_000, way_out="go elsewhere", note=" (nothing is lost)"),
    ):
        raise error
    assert type(caught.value) is kind and str(caught.value).startswith(said)


def test_the_cause_of_an_error_counts():
    with pytest.raises(UserError, match="x: no space left"), disk_errors("x"):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise ValueError("the library failed") from error
