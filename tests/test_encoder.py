"""Encoder: the vectors of SentenceTransformer, whatever the input, from Python and from the shell."""

import errno
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from ppa_jax import Encoder, encoder
from ppa_jax.errors import UserError
from ppa_jax.evaluation import embed
from ppa_jax.interop import hub, huggingface, sentence_transformers

TEXTS = ["a short one", "b", "", "this sentence runs on for quite a while longer than ten pieces", "a short one"]


@pytest.fixture(scope="module")
def directory(tiny, add_tokenizer, tmp_path_factory):
    """A Hugging Face directory without any settings of a sentence encoder."""
    path = tmp_path_factory.mktemp("model")
    tiny("BertForMaskedLM", pad_token_id=1).save_pretrained(path)
    add_tokenizer(path, pad=1)
    return path


@pytest.fixture(scope="module")
def exported(directory, tmp_path_factory):
    """exported(layer, pooling): as the main job leaves it."""

    def make(layer, pooling):
        path = tmp_path_factory.mktemp("export")
        pretrained = huggingface.read(directory)
        huggingface.write(path, pretrained, files_from=directory)
        sentence_transformers.write_modules(path, pretrained, sentence_transformers.Settings(layer, pooling, 12))
        return path

    return make


@pytest.mark.parametrize("layer, pooling", [(3, "cls"), (2, "mean")])
def test_gives_the_vectors_of_sentence_transformers(exported, layer, pooling, tmp_path):
    from sentence_transformers import SentenceTransformer

    path = exported(layer, pooling)
    theirs = SentenceTransformer(str(path), device="cpu")
    ours = Encoder.from_pretrained(path)
    assert (ours.layer, ours.pooling, ours.max_length) == (layer, pooling, 12)
    vectors = ours.encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, theirs.encode(TEXTS), atol=1e-5 * np.abs(vectors).max())
    unit = ours.encode(TEXTS, normalize=True)
    np.testing.assert_allclose(unit, theirs.encode(TEXTS, normalize_embeddings=True), atol=1e-5)

    half = SentenceTransformer(str(path), device="cpu").half().encode(TEXTS)
    np.testing.assert_allclose(half, vectors, atol=5e-3 * np.abs(vectors).max())  # float16: 1e-3, over three layers

    theirs.save(str(tmp_path / "saved"))  # none of our settings, only their own layout
    again = Encoder.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(again.encode(TEXTS), vectors, atol=1e-5 * np.abs(vectors).max())


def test_a_special_token_in_a_sentence_is_text(exported):
    from sentence_transformers import SentenceTransformer

    path = exported(1, "mean")  # where the tiny model still tells sentences apart clearly
    theirs, ours = SentenceTransformer(str(path), device="cpu"), Encoder.from_pretrained(path)
    vector = ours.encode("a [MASK] b")
    np.testing.assert_allclose(vector, ours.encode("a [ mask ] b"), atol=1e-5)
    assert np.abs(vector - theirs.encode("a [MASK] b")).max() > 0.01


def test_a_normalize_module_counts(exported):
    from sentence_transformers import SentenceTransformer

    path = exported(3, "mean")
    modules = json.loads((path / "modules.json").read_text())
    last = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
    (path / "modules.json").write_text(json.dumps([*modules, last]))
    vectors = Encoder.from_pretrained(path).encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors, SentenceTransformer(str(path), device="cpu").encode(TEXTS), atol=1e-5)


def test_a_plain_directory_is_pooled_by_the_mean_of_the_last_layer(directory):
    plain = Encoder.from_pretrained(directory)
    assert (plain.layer, plain.pooling, plain.max_length) == (3, "mean", 33)
    chosen = Encoder.from_pretrained(directory, layer=1, pooling="cls", max_length=6)
    assert (chosen.layer, chosen.pooling, chosen.max_length) == (1, "cls", 6)
    default, asked = plain.encode(["abc"]), plain.encode(["abc"], layer=1, pooling="cls")
    np.testing.assert_allclose(asked, chosen.encode(["abc"]), atol=1e-5)
    assert not np.allclose(default, asked)
    np.testing.assert_allclose(plain.encode("abc"), default[0], atol=1e-5)
    assert plain.encode("abc").shape == (24,)


def test_any_number_of_sentences_of_any_length(directory):
    model = Encoder.from_pretrained(directory)
    assert model.encode([]).shape == (0, 24)
    assert np.isfinite(model.encode([""])).all()
    long = "word " * 10_000
    np.testing.assert_allclose(model.encode([long]), model.encode(["word " * 40]), atol=1e-5)
    rng = np.random.default_rng(0)
    many = ["".join(rng.choice(list("abcdefg "), rng.integers(1, 40))) for _ in range(300)]
    vectors = model.encode(many, batch_size=4)
    for i in (0, 137, 299):
        np.testing.assert_allclose(vectors[i], model.encode(many[i]), atol=1e-5)


def test_thousands_of_sentences_stay_in_order_and_need_few_programs(directory, monkeypatch):
    for module, name in ((embed, "CHUNK"), (encoder, "NORMALIZED")):
        monkeypatch.setattr(module, name, 700)  # several, the last one partial
    model = Encoder.from_pretrained(directory, layer=1, batch_size=8)
    rng = np.random.default_rng(0)
    many = ["".join(rng.choice(list("abcdefg "), rng.integers(1, 40))) for _ in range(4000)]
    vectors = model.encode(many)
    order = rng.permutation(len(many))  # other blocks, other neighbours in a row
    np.testing.assert_allclose(model.encode([many[i] for i in order]), vectors[order], atol=1e-5)
    assert len(np.unique(vectors.round(3), axis=0)) > 0.9 * len(set(many))
    unit = model.encode(many, normalize=True)
    np.testing.assert_allclose(unit, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-5)
    (program,) = model.embedder.programs.values()
    assert program._cache_size() <= 3  # full blocks, and two shorter ones


def test_devices_share_the_work_and_change_nothing(directory):
    one = Encoder.from_pretrained(directory, devices=jax.devices()[:1])
    eight = Encoder.from_pretrained(directory)
    many = [f"{'ab ' * (i % 9)}{chr(97 + i % 26)}" for i in range(200)]
    np.testing.assert_allclose(eight.encode(many), one.encode(many), atol=1e-5)
    assert len(jax.tree.leaves(eight.params)[0].sharding.device_set) == 8
    third = Encoder.from_pretrained(directory, devices=jax.devices()[2:3])
    assert jax.tree.leaves(third.params)[0].sharding.device_set == {jax.devices()[2]}
    np.testing.assert_allclose(third.encode(many), one.encode(many), atol=1e-5)


def test_a_run_stands_for_its_export(exported, tmp_path):
    path = exported(2, "mean")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/base").mkdir()
    with pytest.raises(UserError, match=r"has not finished; .*convert to-hf"):
        Encoder.from_pretrained(tmp_path / "run")
    shutil.copytree(path, tmp_path / "run/export")
    run, export = (Encoder.from_pretrained(x) for x in (tmp_path / "run", path))
    np.testing.assert_allclose(run.encode(TEXTS), export.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"layer": 4}, "layer 4: this encoder has layers 0 to 3"),
        ({"layer": -1}, "layer -1: this encoder has layers 0 to 3"),
        ({"layer": 2.7}, "layer=2.7: must be a whole number"),
        ({"layer": "2"}, "layer='2': must be a whole number"),
        ({"pooling": "max"}, "'max': choose from cls"),
        ({"pooling": ["mean"]}, "pooling .*: choose from cls"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 1.5}, "batch_size=1.5: must be a whole number"),
        ({"batch_size": "8"}, "batch_size='8': must be a whole number"),
        ({"sentences": ["a", None]}, "sentence 1 is NoneType, not str"),
        ({"sentences": ["a", "\u00fc", "a\ud800b"]}, r"sentence 2: '\\ud800' is a lone surrogate"),
    ],
)
def test_what_it_cannot_do(directory, options, said):
    model = Encoder.from_pretrained(directory)
    with pytest.raises(UserError, match=said):
        model.encode(**({"sentences": ["a"]} | options))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"layer": 9}, "layer 9"),
        ({"layer": "2"}, "layer='2'"),
        ({"dtype": "int8"}, "dtype=int8: must be one of"),
        ({"batch_size": "8"}, "batch_size='8'"),
        ({"max_length": 8.0}, "max_length=8.0: must be a whole number"),
    ],
)
def test_what_it_cannot_open(directory, options, said):
    with pytest.raises(UserError, match=said):
        Encoder.from_pretrained(directory, **options)


def test_a_module_that_does_more_than_pool_is_refused_unless_overruled(exported, tmp_path):
    path = exported(3, "mean")
    modules = json.loads((path / "modules.json").read_text())
    dense = {"idx": 2, "name": "2", "path": "2_CNN", "type": "sentence_transformers.models.CNN"}
    (path / "modules.json").write_text(json.dumps([*modules, dense]))
    (path / "config_sentence_transformers.json").unlink()
    with pytest.raises(UserError, match=r"module CNN is not supported.*; to use its encoder only, give layer and"):
        Encoder.from_pretrained(path)
    assert Encoder.from_pretrained(path, layer=3, pooling="mean").layer == 3


def test_a_prompt_precedes_the_sentence_as_in_sentence_transformers(exported):
    from sentence_transformers import SentenceTransformer

    path = exported(3, "mean")
    settings = path / "config_sentence_transformers.json"
    prompts = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | prompts))
    theirs, ours = SentenceTransformer(str(path), device="cpu"), Encoder.from_pretrained(path)
    plain = ours.encode(TEXTS, prompt="")
    for given in ({}, {"prompt_name": "query"}, {"prompt_name": "document"}, {"prompt": "abc "}, {"prompt": ""}):
        vectors = ours.encode(TEXTS, **given)
        np.testing.assert_allclose(vectors, theirs.encode(TEXTS, **given), atol=1e-5 * np.abs(vectors).max())
        assert np.allclose(vectors, plain) == (given in ({"prompt_name": "document"}, {"prompt": ""}))
    np.testing.assert_allclose(ours.encode(TEXTS[0]), ours.encode(["query: " + TEXTS[0]], prompt="")[0], atol=1e-5)
    with pytest.raises(UserError, match=r"prompt_name='passage': the model has query, document"):
        ours.encode(TEXTS, prompt_name="passage")
    pooling = path / "1_Pooling/config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": False}))
    ours_key = json.loads(settings.read_text())
    ours_key["ppa_jax"]["include_prompt"] = False
    settings.write_text(json.dumps(ours_key))
    with pytest.raises(UserError, match=r"include_prompt.*not supported"):
        Encoder.from_pretrained(path).encode(TEXTS)


def test_similarity_is_that_of_sentence_transformers(exported):
    from sentence_transformers import SentenceTransformer

    path = exported(2, "mean")
    theirs, ours = SentenceTransformer(str(path), device="cpu"), Encoder.from_pretrained(path)
    one, other = theirs.encode(TEXTS), theirs.encode(TEXTS[:2])
    expected = theirs.similarity(one, other).numpy()
    np.testing.assert_allclose(ours.similarity(one, other), expected, atol=1e-5)
    np.testing.assert_allclose(ours.similarity(TEXTS, TEXTS[:2]), expected, atol=1e-5)
    np.testing.assert_allclose(ours.similarity(one[0], other), expected[:1], atol=1e-5)
    np.testing.assert_allclose(ours.similarity(TEXTS[0], "b"), expected[:1, 1:], atol=1e-5)


def test_its_repr_says_what_it_computes_and_push_to_hub_where_from(exported, monkeypatch):
    path = exported(2, "cls")
    model = Encoder.from_pretrained(path)
    assert repr(model) == (f"Encoder({path}: bert, 3 x 24, vocabulary of 64; layer=2, pooling='cls', max_length=12)")
    pushed = []
    monkeypatch.setattr(hub, "push", lambda *args, **options: pushed.append((*args, options)) or "address")
    assert model.push_to_hub("me/model", private=True) == "address"
    assert pushed == [(path, "me/model", {"private": True})]
    made = Encoder(model.config, model.params, model.tokenizer, layer=2, pooling="cls", max_length=12)
    assert repr(made).startswith("Encoder(in memory: bert")
    with pytest.raises(UserError, match="made in memory"):
        made.push_to_hub("me/model")


def test_standard_input(directory, tmp_path):
    command = [sys.executable, "-m", "ppa_jax.encoder", f"--model={directory}", "--input=-", "--prompt=query: "]
    text = "Guten Morgen\nabc"
    subprocess.run([*command, f"--output={tmp_path / 'o.npy'}"], input=text, text=True, check=True, timeout=120)
    expected = Encoder.from_pretrained(directory).encode(["query: Guten Morgen", "query: abc"])
    np.testing.assert_allclose(np.load(tmp_path / "o.npy"), expected, atol=1e-5)


def test_from_the_shell(directory, tmp_path, capsys):
    (tmp_path / "in.txt").write_bytes("\ufeffGuten Morgen\r\n\nabc\n".encode())
    arguments = [f"--model={directory}", f"--input={tmp_path / 'in.txt'}", f"--output={tmp_path / 'new/out.npy'}"]
    assert encoder.main([*arguments, "--layer=2", "--pooling=cls", "--normalize"]) == 0
    assert "3 x 24 float32" in capsys.readouterr().out
    expected = Encoder.from_pretrained(directory, layer=2, pooling="cls").encode(
        ["Guten Morgen", "", "abc"], normalize=True
    )
    np.testing.assert_allclose(np.load(tmp_path / "new/out.npy"), expected, atol=1e-6)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"output": "x.txt"}, "must end in .npy"),
        ({"output": "{tmp}/in.txt/o.npy"}, "--output=.*: .*; give another file"),
        ({"output": "{tmp}/directory.npy"}, "--output=.*: Is a directory; give another file"),
        ({"input": "missing.txt"}, "--input: .*missing.txt"),
        ({"input": "{tmp}/empty.txt"}, "--input: .*empty.txt is empty"),
        ({"model": "nowhere/at/all"}, "nowhere/at/all"),
    ],
)
@pytest.mark.parametrize("existing", [None, b"vectors of an earlier day"])
def test_mistakes_on_the_command_line(directory, tmp_path, capsys, change, said, existing):
    (tmp_path / "in.txt").write_text("abc\n")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "directory.npy").mkdir()
    if existing:
        (tmp_path / "o.npy").write_bytes(existing)
    before = sorted(tmp_path.iterdir())
    given = {"model": directory, "input": tmp_path / "in.txt", "output": tmp_path / "o.npy"} | change
    assert encoder.main([f"--{name}={value}".replace("{tmp}", str(tmp_path)) for name, value in given.items()]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err
    assert re.search(said, err)
    assert sorted(tmp_path.iterdir()) == before
    assert not existing or (tmp_path / "o.npy").read_bytes() == existing


def test_a_file_that_cannot_be_finished_leaves_the_one_before(directory, tmp_path, capsys, monkeypatch):
    def full(file, vectors):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(encoder.np, "save", full)
    (tmp_path / "in.txt").write_text("abc\n")
    (tmp_path / "o.npy").write_bytes(b"vectors of an earlier day")
    given = [f"--model={directory}", f"--input={tmp_path / 'in.txt'}", f"--output={tmp_path / 'o.npy'}"]
    assert encoder.main(given) == 2
    assert "o.npy: no space left" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "o.npy"]
    assert (tmp_path / "o.npy").read_bytes() == b"vectors of an earlier day"


def test_the_package_is_light_until_it_is_used():
    code = "import sys, ppa_jax; assert 'jax' not in sys.modules; ppa_jax.Encoder; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
