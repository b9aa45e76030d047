"""What the Hub refuses comes out as one line that says all of it."""

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from ppa_jax.errors import UserError
from ppa_jax.interop import hub

OFFLINE = (
    "Cannot find an appropriate cached snapshot folder for the specified revision on the local disk and outgoing "
    "traffic has been disabled.\nTo enable repo look-ups and downloads online, pass 'local_files_only=False' as input."
)


@pytest.mark.parametrize(
    "said, shown",
    [
        (OFFLINE, OFFLINE.replace("\n", " ")),
        ("401 Client Error.\n\nRepository Not Found for url: u.", "401 Client Error. Repository Not Found for url: u."),
        ("word " * 100, "word " * 59 + "..."),
        ("", "LocalEntryNotFoundError"),
    ],
)
def test_an_error_of_the_hub_is_one_whole_line(monkeypatch, said, shown):
    def refuse(*_, **__):
        raise LocalEntryNotFoundError(said)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError) as error:
        hub.resolve("owner/model")
    assert str(error.value) == (
        f"owner/model: no such directory, and downloading it from the Hugging Face Hub failed ({shown}); "
        "check the name, or download it and give its directory"
    )
