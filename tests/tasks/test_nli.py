import csv
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from ppa_jax.data.tokenizer import load_tokenizer
from ppa_jax.errors import UserError
from ppa_jax.model import dropout as drop
from ppa_jax.model.bert import EncoderConfig, rows_from_mask
from ppa_jax.tasks import nli
from ppa_jax.tasks.nli import LABELS, Example
from ppa_jax.tasks.task import IGNORE, Feature

TINY = EncoderConfig(vocab_size=64, hidden_size=24, num_layers=3, num_heads=4, hidden_dropout=0.5)


def pair(premise="a", hypothesis="b", label: str | None = "neutral", language="en", id="1"):
    return Example(premise, hypothesis, label, language, id)


@pytest.fixture
def read(tmp_path):
    """read(text, **arguments of nli.read) -> the examples of a file with this text."""

    def read_text(text, language="en", name="n.tsv"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return nli.read(path, language=language, field="data.train")

    return read_text


A, B = 'A man, "old".', "It's 5 o'clock"  # quotes inside are text in every layout


@pytest.mark.parametrize(
    "text",
    [
        f"{A}\t{B}\tcontradiction\n",
        f"prem\thyp\tlabel\tannotated_label\n{A}\t{B}\tcontradiction\tneutral\n",
        f"premise\thypo\tlabel\r\n{A}\t{B}\tcontradictory\r\n",
        f"sentence1\tsentence2\tgold_label\n{A}\t{B}\tContradictions\n",
        f"pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n1\t{A}\t{B}\t4.5\tCONTRADICTION\n",
        f"gold_label\tsentence1_parse\tsentence1\tsentence2\tlabel1\ncontradiction\t(x)\t{A}\t{B}\tneutral\n",
        json.dumps({"gold_label": "contradiction", "label": "x", "sentence1": A, "sentence2": B}),
        json.dumps({"premise": A, "hypothesis": B, "label": 2}),
    ],
)
def test_layouts(read, text):
    for name in ("n.txt", "n.gz"):
        (example,) = read(text, language="de", name=name)
        assert example[:4] == (A, B, "contradiction", "de")


QUOTED = '"""He said ""yes"", and went."'


@pytest.mark.parametrize(
    "header",
    [
        "prem\thyp\tlabel\tannotated_label",  # TaxiNLI
        "sentence1\tsentence2\tgold_label\tx",  # CAD; MultiNLI as pandas saves it
        "premise\thypothesis\tlabel\tgenre",
    ],
)
def test_quotes_are_those_of_csv_where_the_file_has_them(read, header):
    """A file is CSV if more of its quotes are doubled in quoted fields than not; else all quotes are text."""
    row, plain = f"{QUOTED}\tb\tneutral\tx\n", 'He said "no".\tb\tneutral\tx\n'
    assert read(f"{header}\n{row}{row}{plain}")[1] == pair('"He said "yes", and went.', id="3")
    assert read(f"{header}\n{row}{plain}")[0] == pair(QUOTED, id="2"), "as much speaks for text"
    assert read(f'{header}\n"No."\tb\tneutral\tx\n')[0] == pair('"No."', id="2"), "a sentence in quotes"


def test_every_field_in_quotes(read):
    found = read('"premise"\t"hypothesis"\t"label"\n"a"\t"b"\t"neutral"\n')
    assert found == [pair("a", "b", id="2")]


def test_rows_whose_csv_quotes_do_not_match_are_skipped_and_counted(read, caplog):
    good = f"{QUOTED}\tb\tneutral\n" * 3
    found = read("sentence1\tsentence2\tgold_label\n" + good + '"No," he said.\tb\tneutral\n"a\tb\tneutral\n' + good)
    assert [example.id for example in found] == ["2", "3", "4", "7", "8", "9"], "an open quote takes no other row along"
    (line,) = caplog.messages
    assert "2 of 8 skipped" in line and "not CSV" in line and "at line 5" in line and "at line 6" in line


@pytest.mark.parametrize(
    "name, sides, quoted",
    [("taxinli10k", ("prem", "hyp"), 207), ("cad_all_combined_train", ("sentence1", "sentence2"), 43)],
)
def test_real_csv_files_are_read_as_csv(shared, name, sides, quoted):
    path = shared / f"data/nli_train/{name}.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        expected = [tuple(row[side] for side in sides) for row in csv.DictReader(file, delimiter="\t")]
    found = [(example.premise, example.hypothesis) for example in nli.read(path, language="en", field="data.train")]
    assert found == expected
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    assert sum("\t".join(pair) not in line for pair, line in zip(found, lines, strict=True)) == quoted


def test_language_column_chooses_and_ids_are_kept(read):
    text = "language\tgold_label\tsentence1\tsentence2\tpairID\nde\tneutral\tx\ty\t7\nen\tneutral\ta\tb\t7\n"
    assert read(text) == [pair(id="7")]
    with pytest.raises(UserError, match=r"^data.train: .*n.tsv: no row of language 'fr'; it has de, en$"):
        read(text, language="fr")


def test_bad_rows_are_skipped_and_counted(read, caplog):
    good = "a\tb\tneutral\n" * 5
    found = read(good + "a\tb\t-\n" + "a\tb\n" + "a\t \tneutral\n" + "a\tb\tmaybe\n" + "a\tb\t-\n")
    assert [example.id for example in found] == ["1", "2", "3", "4", "5"]
    (line,) = caplog.messages
    assert "5 of 10 skipped: no gold label (-): 2 (first at line 6); fewer than 3 columns: 1" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tb\n", r"n.tsv:1: no header and not three columns"),
        ("a\tb\tc\n", r"n.tsv:1: unknown label 'c'; 1 of 1 unusable"),
        ("sentence1\tsentence2\tlabel\n", r"n.tsv:1: nothing is here"),
        ('{"sentence1": 1\n', r"n.tsv:1: not a JSON object"),
    ],
)
def test_unusable_file(read, text, message):
    with pytest.raises(UserError, match=rf"^data.train: \S*{message}.*; NLI files are [^\n]*$"):
        read(text)


def test_labels_have_a_fixed_order_and_must_exist(read):
    assert nli.labels([pair(label="contradiction"), pair()]) == ("entailment", "neutral", "contradiction")
    unlabelled = read("sentence1\tsentence2\na\tb\n")
    assert unlabelled == [pair(label=None, id="2")]
    with pytest.raises(UserError, match="no labels; name its column"):
        nli.labels(unlabelled)
    with pytest.raises(UserError, match=r"only one label \(neutral\); give data with entailment, neutral"):
        nli.labels([pair(), pair()])


@pytest.fixture(params=["bert", "xlm-roberta"])
def directory(request, tmp_path, add_tokenizer):
    """Tokenizers of letters, which transformers gives BERT's or XLM-R's layout of pairs."""
    if request.param == "bert":
        add_tokenizer(tmp_path)
        return tmp_path
    from transformers import PreTrainedTokenizerFast

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefgh"]
    backend = Backend(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="<mask>", **names).save_pretrained(tmp_path)
    return tmp_path


def test_pairs_are_laid_out_and_truncated_as_in_transformers(directory):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(directory)
    sizes = [(n, m) for n in (1, 3, 4, 5, 9) for m in (1, 3, 4, 5, 9)]
    pairs = [pair(" ".join("abcdefgha"[:n]), " ".join("hgfedcbah"[:m])) for n, m in sizes]
    for max_length in (8, 11, 12, 99):
        found = nli.features(pairs, load_tokenizer(directory), max_length, LABELS)
        for example, feature in zip(pairs, found, strict=True):
            kwargs = dict(truncation="longest_first", max_length=max_length, return_token_type_ids=True)
            expected = theirs(example.premise, example.hypothesis, **kwargs)
            assert ([*feature.ids], [*feature.types]) == (expected["input_ids"], expected["token_type_ids"])
    with pytest.raises(UserError, match="max_length 4 leaves no room"):
        nli.features(pairs, load_tokenizer(directory), 4, LABELS)


def test_head_and_loss_equal_transformers(tiny):
    import torch

    model = tiny("BertForSequenceClassification", num_labels=3)
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(4, 7, 24)).astype(np.float32)
    label = np.array([2, 0, IGNORE, 1])
    with torch.no_grad():
        logits = model.classifier(model.bert.pooler(torch.tensor(hidden)))
        expected = torch.nn.functional.cross_entropy(
            logits, torch.tensor(label), ignore_index=IGNORE, reduction="sum"
        ).item()
    dense = {"pooler": model.bert.pooler.dense, "classifier": model.classifier}
    params = {
        name: {"kernel": module.weight.detach().numpy().T, "bias": module.bias.detach().numpy()}
        for name, module in dense.items()
    }
    batch = {"label": jnp.asarray(label)}
    head = nli.Head(TINY, LABELS, jnp.float32)
    outputs = head.apply({"params": params}, jnp.asarray(hidden), batch, None)
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-5)  # float32, 24 summands of about 0.3
    total, count = nli.loss(outputs, batch)
    assert count == 3 and total == pytest.approx(expected, rel=1e-5)

    low = nli.Head(TINY, LABELS, jnp.bfloat16).apply({"params": params}, jnp.asarray(hidden, jnp.bfloat16), batch, None)
    assert low["logits"].dtype == jnp.float32


def test_dropout_of_the_pooled_state_depends_on_the_seeds():
    head = nli.Head(TINY, LABELS, jnp.float32)
    hidden = jnp.ones((2, 5, 24))
    seeds = drop.token_seeds(jnp.uint32(3), *rows_from_mask(jnp.ones((2, 5), jnp.int32)))
    params = head.init(jax.random.key(0), hidden, {}, None)
    params["params"]["classifier"]["kernel"] = jnp.ones((24, 3))
    params["params"]["pooler"]["kernel"] = jnp.ones((24, 24))  # tanh(24) is 1: the logits count what is kept
    kept = head.apply(params, hidden, {}, seeds)["logits"][:, 0] / 2
    assert kept[0] != kept[1] and kept.min() > 0 and kept.max() < 24
    assert kept.tolist() == [round(float(k)) for k in kept]
    assert (head.apply(params, hidden, {}, None)["logits"] == 24).all()


def test_decode_score_and_write(tmp_path):
    examples = [pair(label=label, id=str(i)) for i, label in enumerate([*LABELS, None, "neutral"])]
    gold = [LABELS.index(example.label or "neutral") for example in examples]
    gold[-1] = 0  # one of four labelled pairs is wrong
    outputs = [{"logits": np.eye(3)[label]} for label in gold]
    rows = [Feature(i, [], [], {}, {}) for i in range(5)]
    predictions = nli.decode(examples, rows, outputs, LABELS)
    assert nli.score(examples, predictions, "en") == {"accuracy": (75.0, 4)}
    assert nli.score(examples[3:4], predictions[3:4], "en") == {}
    nli.write(tmp_path / "p.tsv", examples[:2], predictions[:2])
    assert (tmp_path / "p.tsv").read_text() == "0\tentailment\n1\tneutral\n"
