"""Downloads and uploads: errors are one line, and an upload is one commit with the card adapted to the repository."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from ppa_jax.errors import UserError
from ppa_jax.interop import hub
from ppa_jax.main import main

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


class StandIn(BaseHTTPRequestHandler):
    """The parts of the Hub's HTTP API that an upload uses; every file is small enough to be sent in the commit."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.requests.append((self.path, self.headers["Authorization"], body))
        status, answer = 200, {}
        if self.path == "/api/repos/create":
            refused = not {"private", True}.isdisjoint(json.loads(body).values())
            status = 403 if refused else 200
            answer = {"error": "no private ones left"} if refused else {"url": "https://huggingface.co/me/model"}
        elif "/preupload/" in self.path:
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            answer = {"files": [file | {"shouldIgnore": False} for file in files]}
        elif "/commit/" in self.path:
            answer = {"commitUrl": "https://huggingface.co/me/model/commit/1", "commitOid": "1", "hookOutput": ""}
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        """Nothing on stderr."""


@pytest.fixture
def server(monkeypatch):
    with HTTPServer(("127.0.0.1", 0), StandIn) as server:
        server.requests = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def export(tmp_path):
    """The files of a run, as `push` sees them."""
    for name in ("base", "checkpoints", "export/1_Pooling"):
        (tmp_path / "run" / name).mkdir(parents=True)
    files = {"config.json": "{}", "README.md": f"# Title\nload({hub.HERE!r})", "1_Pooling/config.json": "{1}"}
    for name, text in files.items():
        (tmp_path / "run/export" / name).write_text(text)
    (tmp_path / "run/export/.config.json.lock").touch()
    return tmp_path / "run"


def test_push_uploads_the_export_in_one_commit(server, export, capsys):
    assert main(["push", str(export), "--repo=me/model"]) == 0
    assert capsys.readouterr().out == f"{huggingface_hub.constants.ENDPOINT}/me/model\n"
    (_, token, created), *_, (path, _, commit) = server.requests
    assert json.loads(created)["name"] == "model" and token == "Bearer hf_test"
    assert path == "/api/models/me/model/commit/main"
    entries = [json.loads(line) for line in commit.splitlines()]
    files = {e["value"]["path"]: base64.b64decode(e["value"]["content"]) for e in entries if e["key"] == "file"}
    assert files == {"config.json": b"{}", "README.md": b"# Title\nload('me/model')", "1_Pooling/config.json": b"{1}"}


def test_push_without_a_card_says_so(server, export, capsys):
    (export / "export/README.md").unlink()
    assert main(["push", str(export / "export"), "--repo=me/model"]) == 0
    assert "warning: " in (err := capsys.readouterr().err) and "export: no model card (README.md)" in err
    assert "README.md" not in server.requests[-1][2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{run}", "--repo=model"], "--repo=model: must be a name on the Hub, owner/name"),
        (["{run}/base", "--repo=me/model"], "base: no config.json; give a directory with a model, or the workdir"),
        (
            ["{run}", "--repo=me/model", "--private"],
            r"me/model: the upload failed \(.*no private ones left.*\)",
        ),
    ],
)
def test_push_answers_a_mistake_in_one_line(server, export, error_line, arguments, said):
    assert main(["push", *(text.replace("{run}", str(export)) for text in arguments)]) == 2
    assert re.search(said, error_line())
    assert not any("commit" in path for path, *_ in server.requests)


def test_push_needs_a_token(export, monkeypatch, error_line):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["push", str(export), "--repo=me/model"]) == 2
    assert "not logged in to the Hub; run `hf auth login`, or set HF_TOKEN" in error_line()
