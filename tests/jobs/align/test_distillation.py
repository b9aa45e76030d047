"""Distillation: the step against PyTorch and on devices; a run towards a teacher, its cache, its export."""

import dataclasses
import shutil

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file
from step_fixtures import BATCH, CONFIG, METHOD, largest_difference, run

from ppa_jax import Encoder
from ppa_jax import config as configs
from ppa_jax.data import sample
from ppa_jax.errors import UserError
from ppa_jax.interop import huggingface
from ppa_jax.jobs.align.teacher import open_teacher
from ppa_jax.main import main
from ppa_jax.training import sharding
from ppa_jax.training.checkpoint import load_latest_params
from ppa_jax.training.metrics import read_metrics

DISTILL = dataclasses.replace(
    METHOD, tlm_weight=0.0, contrastive_weight=0.0, distill_weight=2.0, layer=1, pooling="mean"
)


@pytest.fixture(scope="module")
def sources(number_pairs):
    """Two corpora with random vectors of width 32."""
    rng, pairs = np.random.default_rng(0), [number_pairs(300, seed=0), number_pairs(80, seed=1)]
    for source in pairs:
        source.teacher = rng.normal(size=(len(source.texts), 32)).astype(np.float16)
    return pairs


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("loss", "normalize", "pooling"), [("mse", False, "mean"), ("cosine", True, "cls")])
def test_loss_and_gradients_equal_pytorch(make, params, sources, tmp_path, loss, normalize, pooling):
    """By one step of descent at rate 1. Each sentence by itself, in the loss that sentence-transformers has for it."""
    import torch
    import transformers

    config = dataclasses.replace(CONFIG, hidden_dropout=0.0, attention_dropout=0.0)
    method = dataclasses.replace(DISTILL, distill_loss=loss, normalize=normalize, pooling=pooling)
    setting = make(config=config, method=method, optimize=optax.sgd(1.0), sources=sources)
    assert setting.state.key_params == {} and set(setting.state.params) == {"encoder"}, "no key side, no projection"
    start = jax.tree.map(np.array, setting.state.params)
    whole = start | {"mlm_head": params["mlm_head"]}
    huggingface.write(tmp_path, huggingface.Pretrained(config, whole, {}, {}))
    theirs = transformers.BertModel.from_pretrained(tmp_path).train()
    plan, vectors, wanted = setting.batches.schedule.batch(0), [], []
    for source, index in zip(plan.source, plan.index, strict=True):
        for text in sources[source].texts[index]:
            ids = torch.tensor([[1, *map(int, text.split()), 2]])
            states = theirs(ids, output_hidden_states=True).hidden_states[1][0]
            vectors.append(states[0] if pooling == "cls" else states.mean(0))
            wanted.append(torch.tensor(sources[source].teacher[index].astype(np.float32)))
    vectors, wanted = torch.stack(vectors), torch.stack(wanted)
    if normalize:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    ones = torch.ones(len(vectors))
    distance = (
        torch.nn.MSELoss()(vectors, wanted) if loss == "mse" else torch.nn.CosineEmbeddingLoss()(vectors, wanted, ones)
    )
    (2 * distance).backward()

    batch = sharding.put_batch(setting.batches.make(0), setting.mesh)
    state, metrics = setting.step(setting.state, batch)
    assert float(metrics["distill"]) == pytest.approx(distance.item(), rel=1e-5)
    assert float(metrics["loss"]) == pytest.approx(2 * distance.item(), rel=1e-5)
    tensors, compared = {f"bert.{name}": p for name, p in theirs.named_parameters()}, 0
    for name, path in huggingface.tensor_names(config).items():
        if name in tensors and tensors[name].grad is not None and path[0] == "encoder":
            before, after = start, state.params
            for key in path:
                before, after = before[key], after[key]
            gradient = tensors[name].grad.numpy()
            gradient = gradient.T if path[-1] == "kernel" else gradient
            np.testing.assert_allclose(before - np.asarray(after), gradient, atol=1e-6, rtol=1e-4, err_msg=name)
            compared += 1
    assert compared == 5 + 16, "the embeddings and the one block that runs"


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("others", [{}, {"tlm_weight": 1.0, "contrastive_weight": 1.0, "objective": "ranking"}])
def test_devices_and_accumulation_change_nothing(make, sources, others):
    """With dropout, alone and beside TLM and ranking: all losses, and every gradient by one step of descent."""
    method = dataclasses.replace(DISTILL, layer=2, **others)
    expected_state, expected = run(make(method=method, sources=sources, optimize=optax.sgd(1.0)), 1)
    setting = make(2, 2, method=method, sources=sources, optimize=optax.sgd(1.0), rules="fsdp")
    assert setting.batches.make(0).teacher.shape == (2, 2, BATCH // 4, 32)
    state, losses = run(setting, 1)
    for name in expected[0]:
        assert losses[0][name] == pytest.approx(expected[0][name], rel=2e-5, abs=1e-6), name
    assert largest_difference(state.params, expected_state.params) < 2e-5


# ---- runs ----

STEPS = 100
FIELDS = {
    "tlm.weight": 0,
    "contrastive.weight": 0,
    "contrastive.pooling": "mean",
    "train.dropout": 0,
    "train.steps": STEPS,
    "train.batch_size": 16,
    "train.learning_rate": 5e-3,
    "mesh.data": 2,
    "checkpoint.every": 50,
}


@pytest.fixture(scope="module")
def student(shelf, tmp_path_factory):
    """The teacher with noise in its word embeddings: near it, and not the same."""
    directory = tmp_path_factory.mktemp("student") / "model"
    shutil.copytree(shelf / "model", directory)
    tensors = load_file(directory / "model.safetensors")
    words = tensors["bert.embeddings.word_embeddings.weight"]
    words += 0.01 * np.random.default_rng(0).normal(size=words.shape).astype(words.dtype)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def distilled(command, compilation, shelf, student, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("distilled") / "run"
    assert main(command(workdir, FIELDS | {"init": student, "distill.teacher": shelf / "model"})) == 0
    return workdir


def test_a_student_near_its_teacher_reproduces_it_in_both_languages(distilled, shelf, student):
    """Of a German sentence the teacher's vector of the English one; the export says so, too."""
    teacher, start, found = (
        Encoder.from_pretrained(x, **how)
        for x, how in ((shelf / "model", {}), (student, {"pooling": "mean"}), (distilled / "export", {}))
    )
    english, german = sample.sentences("en", 0, 300), sample.sentences("de", 0, 300)
    wanted = teacher.encode(english)
    assert found.pooling == "mean" and found.encode(english).shape == wanted.shape

    def error(model, texts):
        return float(np.mean((model.encode(texts) - wanted) ** 2))

    before, after = ([error(model, texts) for texts in (english, german)] for model in (start, found))
    assert before[0] < before[1] / 3 and after[1] < before[1] / 2 and after[0] < before[1] / 3, (before, after)
    records = [record["distill"] for record in read_metrics(distilled)]
    # The first batch, before any step: both sentences of its pairs.
    assert records[0] == pytest.approx(np.mean(before), rel=0.2)
    assert np.mean(records[-10:]) < records[0] / 2
    for file in ("report.md", "export/README.md"):
        assert "distillation of" in (distilled / file).read_text()
    assert "(mse, layer 1, mean)" in (distilled / "report.md").read_text()


def test_the_teacher_reads_every_sentence_once_and_a_run_goes_on_to_the_bit(
    command, distilled, shelf, student, tmp_path, monkeypatch
):
    fields = FIELDS | {"init": student, "distill.teacher": shelf / "model"}
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", None)  # a second reading would fail
        assert main(command(tmp_path / "run", fields | {"train.steps": 3})) == 0
        shutil.copytree(distilled, tmp_path / "again")
        shutil.rmtree(tmp_path / f"again/checkpoints/{STEPS}")
        assert main(command(tmp_path / "again", fields)) == 0
    (step, params), (_, expected) = (load_latest_params(x / "checkpoints") for x in (tmp_path / "again", distilled))
    assert step == STEPS
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(command, compilation, shelf, tmp_path):
    """Both sides of a line are its English sentence, or one of three is: each has the vector of its own line."""
    lines = sample.sentences("en", 0, 24)
    (tmp_path / "x.tsv").write_text("".join(f"{line}\t{line}\n" for line in lines))
    (tmp_path / "y.tsv").write_text("".join(f"\t{line}\t{line}\n" for line in lines))
    given = {"data.pairs": f"de-en={tmp_path}/x.tsv,ru-es-zh={tmp_path}/y.tsv"}
    given |= {"data.max_length": 64, "data.max_pair_pieces": 130}  # nothing is truncated, as nothing is for the teacher
    fields = FIELDS | given | {"init": shelf / "model", "distill.teacher": shelf / "model", "train.steps": 1}
    assert main(command(tmp_path / "run", fields)) == 0
    assert read_metrics(tmp_path / "run")[0]["distill"] < 1e-7, "float16 rounds numbers of about 1 by 5e-4 at most"


def test_a_teacher_of_another_width_is_refused(shelf):
    config = configs.load("ppa")
    config.distill.teacher = str(shelf / "model")
    assert open_teacher(config, 32).width == 32
    with pytest.raises(UserError, match=r"config.distill.teacher=.*: its vectors have 32 numbers, the student's 24;"):
        open_teacher(config, 24)
