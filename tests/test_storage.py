"""Buckets: what is downloaded, and when again; what is written; what a connection that fails is called."""

import pytest
from etils import epath

from ppa_jax.data import sources
from ppa_jax.data.tokenizer import load_tokenizer
from ppa_jax.errors import UserError
from ppa_jax.interop import hub
from ppa_jax.storage import absolute, local, names, on_disk, one_line, staged
from ppa_jax.tasks import files
from ppa_jax.training.metrics import MetricWriter, read_metrics
from ppa_jax.training.workdir import atomic, check_identity, write_identity


def put(storage, *paths):
    """Objects that hold their own names."""
    for path in paths:
        storage.put(path, path.encode())


def below(directory):
    """The names of the files in it, however deep."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def test_a_path_is_itself(home):
    assert local("~/x", beside=True) == home / "x" and local(home) == home


def test_an_object_and_a_directory(home, storage):
    put(storage, "a/one.tsv", "a/b/two", "a/b/", "ab/three", "a.de")
    assert local("gs://bucket/a/one.tsv").read_bytes() == b"a/one.tsv"
    assert below(local("gs://bucket/a/")) == ["b/two", "one.tsv"] == names("gs://bucket/a")
    assert below(home / ".cache/ppa_jax/inputs") == ["bucket/a/b/two", "bucket/a/one.tsv"]
    assert below(local("gs://bucket/ab", wanted=lambda name: name != "three")) == []


def test_what_has_changed_comes_again_and_nothing_else(home, storage):
    put(storage, "a/same", "a/other", "a/gone")
    directory = local("gs://bucket/a")
    before = {name: (directory / name).stat() for name in below(directory)}
    storage.put("a/other", b"A/OTHER")  # as long as it was
    del storage.objects["a/gone"]
    assert below(local("gs://bucket/a")) == ["other", "same"]
    assert (directory / "other").read_bytes() == b"A/OTHER"
    assert (directory / "same").stat().st_ino == before["same"].st_ino
    assert (directory / "other").stat().st_mtime_ns > before["other"].st_mtime_ns  # a prepared corpus is made again


def test_names_with_an_ending(home, storage):
    put(storage, "a/train.de", "a/train.en.gz", "a/train/1", "a/train.old/2", "a/training.de")
    assert below(local("gs://bucket/a/train", beside=True).parent) == ["train.de", "train.en.gz", "train/1"]
    del storage.objects["a/train.de"]
    assert below(local("gs://bucket/a/train", beside=True).parent) == ["train.en.gz", "train/1"]


def test_a_pattern(home, storage):
    put(storage, "a/dev.de.tsv", "a/dev.en.tsv", "a/dev.en.txt", "a/train.de.tsv")
    assert [language for language, _ in files.language_files("gs://bucket/a/dev.{lang}.tsv", "data.dev")] == [
        "de",
        "en",
    ]
    assert below(home / ".cache/ppa_jax/inputs/bucket") == ["a/dev.de.tsv", "a/dev.en.tsv"]


def test_what_is_not_there(home, storage):
    put(storage, "a/../../../b", "ab")
    for address in ("gs://bucket/a", "gs://bucket/b.tsv", "gs://bucket/{lang}.txt"):
        with pytest.raises(UserError, match=f"^{address}: nothing in the bucket has this name"):
            local(address)
    with pytest.raises(UserError, match="the bucket is not there, or may not be read"):
        local("gs://another/a")
    assert not below(home)


@pytest.mark.parametrize("address", ["gs://", "gs://bucket", "gs://bucket/", "gs://bucket/a/../b", "gs://bucket//a"])
def test_addresses_that_are_none(home, storage, address):
    with pytest.raises(UserError, match=f"^{address}: give something in a bucket, as gs://BUCKET/NAME"):
        local(address)


def test_what_is_written_is_on_a_disk(home):
    assert on_disk("~/x") == home / "x"
    with pytest.raises(UserError, match=r"^--target=gs://bucket/x: this cannot be written to a bucket; give a local"):
        on_disk("gs://bucket/x", "--target=")


@pytest.mark.parametrize("function", [local, on_disk, absolute, hub.resolve])
def test_other_addresses_are_refused(function):
    with pytest.raises(UserError, match=r"^s3://bucket/x: s3:// is not supported; give a local path or gs://BUCKET"):
        function("s3://bucket/x")


def test_a_directory_and_a_file_are_uploaded_whole(home, storage):
    written = []
    put = storage.put
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "put", lambda name, content: (written.append(name), put(name, content)))
        with staged("gs://bucket/x/export") as directory:
            (directory / "a").mkdir()
            for name in ("config.json", "a/model", "z"):
                (directory / name).write_text(name)
            assert not storage.objects
    assert sorted(written[:2]) == ["x/export/a/model", "x/export/z"] and written[2:] == ["x/export/config.json"]
    for text in ("first", "second"):
        with atomic(epath.Path("gs://bucket/x/file")) as unfinished:
            unfinished.write_text(text)
        assert storage.objects["x/file"][0] == text.encode()
    with pytest.raises(ZeroDivisionError), atomic(epath.Path("gs://bucket/x/file")) as unfinished:
        unfinished.write_text("third")
        _ = 1 / 0
    assert storage.objects["x/file"][0] == b"second"
    with staged(home / "x") as directory:
        assert directory == home / "x"


def test_a_workdir_in_a_bucket_is_of_one_run(home, storage):
    workdir, config = epath.Path("gs://bucket/x"), {"job": "align", "init": "gs://bucket/x/new_model", "seed": 1}
    assert not check_identity(workdir, config)
    write_identity(workdir, config)
    assert check_identity(workdir, config)
    with pytest.raises(UserError, match=r"^workdir: gs://bucket/x holds a different run \(seed: 1 -> 2\)"):
        check_identity(workdir, config | {"seed": 2})
    del storage.objects["x/config.json"]
    storage.put("x/checkpoints/3/checksums.json", b"{}")
    with pytest.raises(UserError, match=r"gs://bucket/x has checkpoints but no config.json"):
        check_identity(workdir, config)
    with pytest.raises(UserError, match=r"gs://other/x.*: the bucket is not there"):
        write_identity("gs://other/x", config)


def test_metrics_in_a_bucket_are_written_whole(home, storage):
    """By `sync`, before a checkpoint, and by `close`; a run that goes on keeps what came before."""
    writer = MetricWriter("gs://bucket/x")
    writer.truncate_after(-1)
    writer.write(0, {"loss": 1.0})
    writer.write(1, {"loss": 2.0})
    writer.sync()
    writer.write(2, {"loss": 3.0})
    assert [record["step"] for record in read_metrics("gs://bucket/x")] == [0, 1]
    writer = MetricWriter("gs://bucket/x")  # on another machine, from a checkpoint of step 1
    writer.truncate_after(0)
    writer.write(1, {"loss": 4.0})
    writer.close()
    assert [record["loss"] for record in read_metrics("gs://bucket/x")] == [1.0, 4.0]
    assert storage.names("x/tensorboard/")


def test_a_fetch_that_fails_leaves_what_was_there(home, storage, monkeypatch):
    put(storage, "a/one")
    copy = local("gs://bucket/a/one")
    storage.put("a/one", b"new")

    def cut(*args, **more):
        raise ConnectionError("cut")

    with monkeypatch.context() as patch:
        patch.setattr("os.utime", cut)  # after the bytes
        with pytest.raises(RuntimeError, match=r"could not be reached \(cut\)"):
            local("gs://bucket/a/one")
    assert copy.read_bytes() == b"a/one" and below(home) == [".cache/ppa_jax/inputs/bucket/a/one"]
    assert local("gs://bucket/a/one").read_bytes() == b"new"


@pytest.mark.parametrize("spec", [
    "en-de=gs://bucket/text/all.tsv", "en-de=gs://bucket/text/train", "en-de=gs://bucket/text/a.txt|gs://bucket/text/b.txt",
    "en-de=hf:gs://bucket/rows",
])  # fmt: skip
def test_parallel_text(home, storage, spec):
    for name, content in {
        "text/all.tsv": "a dog\tein Hund\n", "text/train.en": "a dog\n", "text/train.de": "ein Hund\n",
        "text/a.txt": "a dog\n", "text/b.txt": "ein Hund\n", "rows/train.jsonl": '{"en": "a dog", "de": "ein Hund"}\n',
    }.items():  # fmt: skip
        storage.put(name, content.encode())
    (source,) = sources.parse_pairs(spec)
    sources.check(source)
    assert list(sources.read_pairs(source, sources.Cleaning(), sources.Counts())) == [("a dog", "ein Hund")]
    assert str(source) == spec


def test_a_model_without_what_is_not_read(home, storage):
    put(storage, "m/config.json", "m/vocab.txt", "m/model.safetensors", "m/pytorch_model.bin", "m/tf_model.h5")
    assert below(hub.resolve("gs://bucket/m/")) == ["config.json", "model.safetensors", "vocab.txt"]
    del storage.objects["m/model.safetensors"]
    assert below(hub.resolve("gs://bucket/m")) == ["config.json", "pytorch_model.bin", "vocab.txt"]


def test_a_tokenizer_alone(home, storage, shared):
    for path in (shared / "data/mbert_tokenizer").iterdir():
        storage.put(f"m/{path.name}", path.read_bytes())
    put(storage, "m/model.safetensors")
    assert load_tokenizer("gs://bucket/m").vocab_size == 119_547
    assert not list(home.rglob("model.safetensors"))


def test_the_model_of_a_run(home, storage):
    put(storage, "x/base/config.json", "x/checkpoints/3/checksums.json", "x/metrics.jsonl")
    with pytest.raises(UserError, match=r"has not finished.*convert to-hf --source=gs://bucket/x "):
        hub.resolve("gs://bucket/x")
    put(storage, "x/export/config.json", "x/export/model.safetensors", "x/export/0_Transformer/model.safetensors")
    found = hub.resolve("gs://bucket/x")
    assert found.name == "export"
    assert below(found) == ["0_Transformer/model.safetensors", "config.json", "model.safetensors"]


class HttpError(Exception):
    """As gcsfs has it."""

    __module__ = "gcsfs.retry"

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


ERRORS = [
    (ImportError("No module named 'gcsfs'"), UserError, "No module named 'gcsfs'.*pip install .* gcsfs"),
    (ConnectionError(), RuntimeError, "could not be reached .ConnectionError.; start again"),
    (HttpError(503, "busy"), RuntimeError, "could not be reached .busy"),
    (
        HttpError(401, "Invalid Credentials"),
        RuntimeError,
        "could not be reached",
    ),  # no token came
    (HttpError(401, "Anonymous caller does not have access"), UserError, "may not be read and written"),
    (HttpError(400, "no bucket's name"), UserError, "may not be read and written"),
    (ValueError("UNAVAILABLE: of TensorStore"), RuntimeError, "could not be reached"),
    (ValueError("UNKNOWN: Gloo AllGather failed"), ValueError, "Gloo"),  # hosts.exit_on_peer_loss knows it
    (ZeroDivisionError("a bug"), ZeroDivisionError, "a bug"),
    (OSError(28, "No space left on device"), OSError, "No space left"),  # of the local copy: main.py has words for it
    (OSError(24, "Too many open files", "/home/x"), OSError, "Too many"),
]


@pytest.mark.parametrize(("error", "kind", "says"), ERRORS)
def test_what_the_way_to_a_bucket_may_say(error, kind, says):
    with pytest.raises(kind, match=says) as told, one_line("gs://bucket/x"):
        raise error
    assert type(told.value) is kind
