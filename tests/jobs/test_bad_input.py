"""Bad input to the main job: one line with the field or the file and the way out, status 2, never a traceback."""

import contextlib
import gzip
import json
import os
import re
import shutil
import subprocess

import pytest

from ppa_jax.data import corpora
from ppa_jax.jobs.align import run as align_run
from ppa_jax.jobs.align import setup as align_setup
from ppa_jax.main import main
from ppa_jax.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("compilation", "no_pictures")


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


LONG = "word " * 20_000  # 100,000 characters
MESSY = (
    b"\xef\xbb\xbfThe dog sleeps.\tDer Hund schl\xc3\xa4ft.\r\n"  # a byte order mark, CRLF
    b"The cat\x07 sleeps.\tDie Katze schl\xc3\xa4ft.\n"
    b"The bird sings.\tDer Vogel singt.\t0.93\n"
    b"no tab here\n"
    b"\tDer Hund\n"
    b"bad \xff bytes\tschlechte Bytes\n" + LONG.encode() + b"\tlang\n"
)


def test_lines_that_cannot_be_used_are_counted(command, tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(align_run, "train", runs.append)
    path = write(tmp_path / "messy.tsv", MESSY)
    assert main(command(tmp_path / "run", {"data.pairs": f"en-de={path}", "mesh.data": 1})) == 0
    _, ((name, source, read, kept, skipped, noted),) = corpora.sources_table(runs[0].pairs)
    assert (name, source, read, kept) == ("en-de", str(path), 7, 3)
    assert sorted(skipped.split(", ")) == ["empty 1", "no_tab 1", "not_utf8 1", "too_long_text 1"]
    assert noted == "control_characters 1, extra_columns 1"
    assert runs[0].pairs[0].read([0, 2]) == [
        ("The dog sleeps.", "Der Hund schläft."),
        ("The bird sings.", "Der Vogel singt."),
    ]


BAD_FIELDS = [
    ({"train.batch_size": 10**9}, r"config.train.batch_size=1000000000: must be greater than 0, at most 2\*\*20"),
    ({"contrastive.queue_size": 10**12}, r"config.contrastive.queue_size=1000000000000: must be .*below 2\*\*31"),
    ({"train.steps": 0, "train.epochs": "1e12"}, "config.train.epochs=1000000000000.0: .* steps; must be below"),
    ({"word_alignment.weight": 1}, "config.word_alignment.dictionaries is empty"),
    ({"word_alignment.weight": -1}, "config.word_alignment.weight=-1.0: must be 0 or more"),
    (
        {"word_alignment.weight": 1, "word_alignment.dictionaries": "nowhere"},
        "word_alignment.dictionaries: no such file: nowhere",
    ),
    (
        {"word_alignment.weight": 1, "word_alignment.dictionaries": "world"},
        "word_alignment.dictionaries=world: the built-in sample is named sample, not world",
    ),
    ({"contrastive.queue": 5}, "config.contrastive.queue: no such field; the nearest is config.contrastive.queue_size"),
    ({"contrastive.steps": 5}, "the nearest is config.pretrain.steps|config.train.steps"),
    ({"train": 5}, "config.train: no such field"),
    ({"train.batch_size": "many"}, "config.train.batch_size=many: must be a whole number"),
    ({"train.batch_size": 2.5}, "must be a whole number"),
    ({"train.steps": "1e400"}, "must be a whole number"),
    ({"train.steps": 10**30}, "config.train.steps=10+.*below 2"),
    ({"train.learning_rate": "fast"}, "config.train.learning_rate=fast: must be a number"),
    ({"train.learning_rate": "nan"}, "must be a number"),
    ({"train.learning_rate": "inf"}, "must be a number"),
    ({"train.learning_rate": ""}, "must be a number"),
    ({"data.shuffle_sides": "maybe"}, "must be true or false"),
    ({"train.learning_rate": -1}, "config.train.learning_rate=-1.0: must be greater than 0"),
    ({"train.batch_size": 0}, "config.train.batch_size=0: must be greater than 0"),
    ({"train.accumulate": 10**6}, r"config.train.accumulate=1000000: must be .* at most 2\*\*10"),
    ({"train.accumulate": 0}, "config.train.accumulate=0: must be"),
    ({"train.dropout": 1}, "config.train.dropout=1.0: must be"),
    ({"train.warmup": -0.1}, "config.train.warmup=-0.1: must be"),
    (
        {"distill.teacher": "/no/such/model"},
        "config.distill.teacher: the contrast has to read both sentences .* contrastive.weight=0",
    ),
    ({"distill.teacher": "/no/such/model", "contrastive.weight": 0}, "/no/such/model: no such directory"),
    ({"distill.teacher": "x", "distill.weight": 0}, "config.distill.weight=0.0: must be greater than 0"),
    ({"distill.loss": "l2"}, "config.distill.loss=l2: must be one of mse, cosine"),
    (
        {"distill.teacher": "x", "contrastive.weight": 0, "data.pairs": "en=sample:0-9"},
        "en=sample:0-9: text of one language has no translations",
    ),
    ({"train.freeze": "0-1"}, "config.train.freeze=0-1: 0-1: the model has 1 blocks, 0 to 0"),
    ({"train.freeze": "embeddings,0"}, "config.train.freeze=embeddings,0: nothing is left to train of the encoder"),
    ({"tlm.mask_rate": 1.5}, "config.tlm.mask_rate=1.5: must be"),
    ({"tlm.weight": -1}, "config.tlm.weight=-1.0: must be"),
    ({"tlm.weight": 0, "contrastive.weight": 0}, "are all 0"),
    ({"contrastive.pooling": "max"}, "config.contrastive.pooling=max: must be cls, mean or empty"),
    ({"contrastive.momentum": 1.1}, "config.contrastive.momentum=1.1: must be"),
    ({"contrastive.objective": "rank"}, "config.contrastive.objective=rank: must be one of momentum, ranking"),
    ({"rtl.weight": -1}, "config.rtl.weight=-1.0: must be 0 or more"),
    ({"rtl.weight": 1, "rtl.target": "fr,es"}, "config.rtl.target=fr,es: en-de=sample:0-300 has no side in it"),
    ({"rtl.weight": 1, "rtl.target": ""}, "config.rtl.target=: en-de=sample:0-300 has no side in it"),
    (
        {"rtl.weight": 1, "tlm.weight": 0, "data.row_length": 32},
        "data.row_length=32: the longest sequence has 41 pieces",
    ),
    (
        {"rtl.weight": 1, "contrastive.weight": 0, "data.pairs": "en=sample:0-9"},
        "en=sample:0-9: text of one language has no translations",
    ),
    ({"contrastive.margin": -0.1}, "config.contrastive.margin=-0.1: must be 0 or more"),
    (
        {"contrastive.objective": "ranking", "contrastive.symmetric": "true"},
        "config.contrastive.symmetric: ranking has both directions",
    ),
    (
        {"contrastive.objective": "ranking", "train.batch_size": 1, "mesh.data": 1},
        "config.train.batch_size=1: ranking is among the pairs of a batch",
    ),
    ({"contrastive.temperature": 0}, "config.contrastive.temperature=0.0: must be"),
    ({"contrastive.queue_size": 0}, "config.contrastive.queue_size=0: must be"),
    ({"contrastive.layer": 2}, "config.contrastive.layer=2: the model has 1 layers"),
    ({"contrastive.layer": -2}, "config.contrastive.layer=-2: must be 0"),
    ({"data.max_length": 2}, "config.data.max_length=2: must be 3 or more"),
    ({"data.max_length": 600, "data.max_pair_pieces": 2000}, "config.data.max_length=600: .* 1199 .* lower"),
    ({"data.row_length": 16}, "config.data.row_length=16: the longest sequence has 43 pieces"),
    ({"data.temperature": 0}, "config.data.temperature=0.0: must be 0.1 or more"),
    ({"data.max_characters": 0}, "config.data.max_characters=0: must be"),
    ({"data.min_pieces": 100}, "no usable pair; 300 read, .*data.min_pieces=100"),
    ({"dtype": "float16"}, "config.dtype=float16: must be one of float32, bfloat16"),
    ({"mesh.rules": "all"}, "config.mesh.rules=all: must be one of"),
    ({"mesh.model": 2}, "config.mesh.model: this setting was removed: .*mesh.rules=fsdp"),
    ({"mesh.data": 16}, "mesh.data=16: must be between 1 and the number of devices, 8"),
    ({"train.batch_size": 12}, "config.train.batch_size=12: must be a multiple of 8 .8 devices.; the nearest is 16"),
    ({"train.accumulate": 3}, "config.train.batch_size=8: must be a multiple of 24 .8 devices x 3 acc.* nearest is 24"),
    ({"train.epochs": 1}, "config.train.steps and config.train.epochs: give one of them, not both"),
    ({"train.steps": 0, "train.epochs": 0}, "config.train.steps and config.train.epochs: give one of them"),
    ({"seed": -1}, "config.seed=-1: must be"),
    ({"seed": 2**40}, "config.seed=1099511627776: must be"),
    ({"checkpoint.keep": 0}, "config.checkpoint.keep=0: must be"),
    ({"eval.every": -1}, "config.eval.every=-1: must be"),
    ({"eval.sample": 10**9}, "config.eval.sample=1000000000: must be at most"),
    ({"eval.sample": 10, "data.pairs": "en-de=sample"}, "config.eval.sample=10: .* write en-de=sample:0-"),
    ({"eval.tatoeba": "/no/such/directory"}, "eval.tatoeba: no such directory: /no/such/directory"),
    ({"eval.pairs": "en-de=nowhere.tsv"}, "config.eval.pairs: no such file: nowhere.tsv"),
    ({"eval.pairs": "de-en=sample:299-310"}, "config.eval.pairs: data.pairs trains on .*; write en-de=OTHER"),
    ({"eval.pairs": "de-en=sample:300-309"}, "config.eval.pairs: en-de: 9 usable pairs, where retrieval needs 10 to"),
    ({"export.select": "true"}, "config.export.select: needs eval.pairs"),
    ({"job": "bake"}, "config.job=bake: must be one of align"),
    ({"init": ""}, "config.init is empty: give .* or pretrain.steps"),
    ({"init": "/no/such/model"}, "/no/such/model: no such directory"),
    ({"data.pairs": ""}, "config.data.pairs is empty: give sources"),
    ({"data.pairs": "en:de=sample"}, "'en:de=sample' is not of the form lang1-lang2=SOURCE"),
    ({"data.pairs": "sample"}, "'sample' is not of the form"),
    ({"data.pairs": "en-en=sample"}, "names one language twice"),
    ({"data.pairs": "en-sw=sample"}, "the built-in sample has en, de"),
    (
        {"data.pairs": "en-de=world:0-9"},
        "en-de=world:0-9: the built-in sample is named sample, not world; write sample",
    ),
    ({"data.pairs": "en-de=sample:5-5"}, "write sample or sample:A-B with 0 <= A < B <= "),
    ({"data.pairs": "en-de=sample:0-9,en-de=sample:0-9"}, "is given 2 times"),
    ({"data.pairs": "en-de=nowhere.tsv"}, "data.pairs: no such file: nowhere.tsv"),
    ({"data.pairs": "en-de=nowhere"}, "no such file: nowhere, nor nowhere.en"),
    ({"data.pairs": "en-de=a.txt|b.txt"}, "no such file: a.txt"),
    ({"data.pairs": f"en-de={__file__}|{__file__}"}, "is one file twice"),
    ({"data.pairs": "en-pt-BR=a.tsv"}, "is not of the form .*; languages have letters, digits and _, as pt_BR"),
    ({"log.wandb": "project"}, "config.log.wandb: wandb is not installed; pip install wandb"),
    ({"data.pairs": "en-de=hf:"}, "write hf:NAME"),
    ({"data.pairs": "en=sample:0-9"}, "en=sample:0-9: text of one language has no translations to contrast"),
]


BAD_NEW_MODELS = [
    ({"model.hidden_size": 15}, "config.model.hidden_size=15: must divide by model.num_heads=2"),
    ({"model.num_layers": 0}, "config.model.num_layers=0: must be greater than 0"),
    ({"contrastive.layer": 2}, "config.contrastive.layer=2: the model has 1 layers"),
    ({"pretrain.batch_size": 12}, "config.pretrain.batch_size=12: must be a multiple of 8"),
    ({"train.batch_size": 12}, "config.train.batch_size=12: must be a multiple of 8"),
    ({"pretrain.learning_rate": 0}, "config.pretrain.learning_rate=0.0: must be"),
    ({"train.freeze": "pooler"}, "config.train.freeze=pooler: pooler is neither embeddings nor blocks"),
    ({"eval.tatoeba": "/no/such/directory"}, "eval.tatoeba: no such directory"),
]


@pytest.mark.parametrize(("fields", "says"), BAD_FIELDS, ids=lambda x: None if isinstance(x, str) else str(x)[:60])
def test_a_wrong_setting(command, tmp_path, error_line, fields, says):
    workdir = tmp_path / "run"
    assert main(command(workdir, fields)) == 2
    assert re.search(says, error_line())
    assert not (workdir / "config.json").exists(), "the corrected command would find the workdir of another run"


@pytest.mark.parametrize(("fields", "says"), BAD_NEW_MODELS, ids=lambda x: None if isinstance(x, str) else str(x)[:60])
def test_a_wrong_setting_of_a_new_model(command, tmp_path, error_line, new_model_fields, fields, says):
    assert main(command(tmp_path / "run", new_model_fields | fields)) == 2
    assert re.search(says, error_line())
    assert not (tmp_path / "run").exists(), "the model was made all the same"


BAD_FILES = [
    ({"x.tsv": ""}, "en-de=x.tsv", "x.tsv is empty"),
    ({"x.tsv": "\ufeff"}, "en-de=x.tsv", "x.tsv is empty"),
    ({"x.tsv": "The dog\tDer Hund\n".encode("utf-16")}, "en-de=x.tsv", "x.tsv: UTF-16"),
    ({"x.tsv": "The dog\nDer Hund\n"}, "en-de=x.tsv", "x.tsv: no usable pair; 2 read, skipped: no_tab 2"),
    ({"x.en": "a\nb\n", "x.de": "a\nb\n"}, "en-de=x.en", "no_tab 2; .*of two line-aligned files give the prefix"),
    ({"x.tsv": b"\xff\t\xfe\n"}, "en-de=x.tsv", "x.tsv: 1 of 1 are not UTF-8; .*: convert it"),
    ({"x.tsv": "\tDer Hund\n\x01\x02\t\n"}, "en-de=x.tsv", "no usable pair; 2 read, skipped: empty 2"),
    ({"x.tsv": LONG + "\tlang\n"}, "en-de=x.tsv", "no usable pair; 1 read, skipped: too_long_text 1"),
    ({"x.tsv.gz": gzip.compress(MESSY * 9)[:90]}, "en-de=x.tsv.gz", "x.tsv.gz: the gzip data is damaged or cut short"),
    ({"x.tsv.gz": "The dog\tDer Hund\n"}, "en-de=x.tsv.gz", "x.tsv.gz: named .gz but not gzip"),
    ({"x.en": "a\nb\n", "x.de": "a\n"}, "en-de=x", "x.en has 2 lines but .*x.de has 1"),
    ({"x.en": "a\nb\n"}, "en-de=x", "no such file: .*x.de"),
    ({"a.txt": "a\n", "b.txt": "a\nb\n"}, "en-de=a.txt|b.txt", "a.txt has 1 lines but .*b.txt has 2"),
    ({"d/x": ""}, "en-de=d", "d is a directory"),
    ({"x.jsonl": '{"en": "a", "fr": "b"}\n'}, "en-de=hf:x.jsonl", "no columns named en and de"),
    ({"x.jsonl": "{\n"}, "en-de=hf:x.jsonl", "x.jsonl"),
    ({"d/x": ""}, "en-de=tfds:d", "no dataset_info.json below"),
]


@pytest.mark.parametrize(("files", "pairs", "says"), BAD_FILES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_wrong_corpus(command, tmp_path, error_line, monkeypatch, new_model_fields, files, pairs, says):
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, content)
    for fields in ({}, new_model_fields):
        assert main(command(tmp_path / "run", fields | {"data.pairs": pairs})) == 2
        assert re.search(says, error_line())


def spoil_tokenizer(model):
    for path in (*model.glob("vocab*"), *model.glob("tokenizer*")):
        path.unlink()


def spoil_vocabulary(model):
    with (model / "vocab.txt").open("a") as file:
        file.write("one\ntwo\n")


def spoil_config_vocabulary(model):
    values = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(values | {"vocab_size": 500}))


def spoil_weights(model):
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])


BAD_MODELS = [
    (spoil_tokenizer, "no tokenizer here .*copy the tokenizer files"),
    (spoil_vocabulary, "init: the tokenizer has ids up to 401 but the model has only 400 embeddings"),
    (spoil_config_vocabulary, "config.json says vocab_size=500, but .*word_embeddings.* has 400 rows"),
    (spoil_weights, "model.safetensors: "),
    (lambda model: (model / "model.safetensors").unlink(), "model.safetensors"),
    (lambda model: (model / "config.json").unlink(), "no config.json; give"),
    (lambda model: (model / "config.json").write_text("{"), "config.json"),
    (lambda model: (model / "config.json").write_text('{"model_type": "gpt2"}'), "gpt2"),
]


@pytest.mark.parametrize(("spoil", "says"), BAD_MODELS)
def test_a_wrong_model(command, shelf, tmp_path, error_line, spoil, says):
    model = shutil.copytree(shelf / "model", tmp_path / "model")
    spoil(model)
    assert main(command(tmp_path / "run", {"init": model})) == 2
    line = error_line()
    assert re.search(says, line) and (str(model) in line or "init" in line)


def test_a_loss_that_is_not_finite_stops_the_run(command, tmp_path, error_line):
    fields = {"train.learning_rate": 1e30, "checkpoint.every": 2, "mesh.data": 1}
    for _ in range(2):  # the second begins again: nothing was saved
        assert main(command(tmp_path, fields)) == 2
        line = error_line()
        assert re.search("step 1: the loss is (nan|inf); there is no good checkpoint. Try a lower train.learning", line)
        assert not list((tmp_path / "checkpoints").iterdir()) and not (tmp_path / "export").exists()
        assert [record["step"] for record in read_metrics(tmp_path)] == [0]


@pytest.fixture
def disk(tmp_path):
    """A disk of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk of a given size can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize(("moment", "room"), [("open_run", 10), ("train", 400), ("evaluate", 0), ("export", 0)])
def test_a_full_disk(command, disk, error_line, monkeypatch, moment, room):
    """A disk that is full (but for `room` kilobytes) when a part of the run begins."""
    module = align_setup if moment == "open_run" else align_run
    part = getattr(module, moment)

    def fill_up_first(*args):
        with (disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - 1024 * room)
        return part(*args)

    monkeypatch.setattr(module, moment, fill_up_first)
    fields = {"checkpoint.every": 2, "checkpoint.keep": 5, "mesh.data": 1, "eval.sample": 6}
    assert main(command(disk / "run", fields)) == 2
    assert re.search("disk/run.*[Nn]o space left.*(free some space|make room)", error_line())
