import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ppa_jax.data import prepare
from ppa_jax.data.corpora import open_pairs, sources_table
from ppa_jax.data.sources import Cleaning, parse_pairs
from ppa_jax.data.tokenizer import load_tokenizer
from ppa_jax.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One word piece a word; the letter z is no piece and a word of its own vanishes (it is stripped)."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Replace
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special["mask_token"] = "[MASK]"
    backend = Backend(WordLevel({word: i for i, word in enumerate(special.values())}, unk_token="[UNK]"))
    backend.normalizer = Replace("z", "")
    backend.pre_tokenizer = WhitespaceSplit()
    directory = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(directory)
    return load_tokenizer(directory)


@pytest.fixture
def opened(tmp_path, tokenizer):
    def open_(spec, **settings):
        limits = {"min_pieces": 1, "max_pair_pieces": 128, "max_length": 64}
        return open_pairs(spec, tokenizer, cache_dir=tmp_path / "cache", **{**limits, **settings})

    return open_


def write(path, pairs):
    path.write_text("".join(f"{a}\t{b}\n" for a, b in pairs), encoding="utf-8")
    return path


def everything(pair):
    return pair.read(range(len(pair)))


def test_sources_of_one_pair_are_merged_with_their_sides_right(tmp_path, opened):
    write(tmp_path / "a.tsv", [("one", "eins eins"), ("two", "zwei zwei")])
    write(tmp_path / "b.tsv", [("drei drei", "three")])
    write(tmp_path / "c.tsv", [("un", "one")])
    (tmp_path / "d.csv").write_text("target;source\nvier vier;four\n")
    table = f"{tmp_path}/d.csv[source,target]"
    en_de, fr_en = opened(f"en-de={tmp_path}/a.tsv,fr-en={tmp_path}/c.tsv,de-en={tmp_path}/b.tsv,en-de={table}")
    assert (en_de.name, en_de.languages, fr_en.name) == ("en-de", ("en", "de"), "fr-en")
    expected = [("one", "eins eins"), ("two", "zwei zwei"), ("three", "drei drei"), ("four", "vier vier")]
    assert everything(en_de) == expected
    assert en_de.lengths.tolist() == [[1, 2]] * 4
    given = [entry["source"] for entry in en_de.report]
    assert given == [f"en-de={tmp_path}/a.tsv", f"de-en={tmp_path}/b.tsv", f"en-de={table}"]


def test_filters_are_settings_and_counted(tmp_path, opened):
    rows = [
        ("a a", "b b"),
        ("a", "b b"),  # one piece
        ("a a a", "b b b"),  # six together
        ("a a", "z"),  # text, but no piece
        ("same same", "same same"),
        ("a a", "b b"),  # the first again
        ("a", "a"),
        ("", "b"),
    ]
    spec = f"en-de={write(tmp_path / 'a.tsv', rows)}"
    (pair,) = opened(spec, min_pieces=0, max_pair_pieces=None)
    assert len(pair) == 6 and pair.report[0]["skipped"] == {"empty": 1, "no_pieces": 1}
    (pair,) = opened(spec, min_pieces=2, max_pair_pieces=5, drop_identical=True, drop_duplicates=True)
    assert everything(pair) == [("a a", "b b")]
    expected = {"empty": 1, "identical": 2, "duplicate": 1, "no_pieces": 1, "too_few_pieces": 1, "too_many_pieces": 1}
    assert pair.report[0]["skipped"] == expected
    assert pair.report[0]["read"] == 8 == pair.report[0]["kept"] + sum(expected.values())
    (pair,) = opened(spec, min_pieces=2, max_pair_pieces=6)
    assert [a for a, _ in everything(pair)] == ["a a", "a a a", "same same", "a a"]


def test_lines_of_several_languages_lose_sides_and_are_merged(tmp_path, opened):
    """A side falls out, not its line, until fewer than two are left; every one is counted."""
    rows = [
        ("a a", "b b", "c c"),
        ("a a", "", "c c"),  # no b
        ("a a", "b", "c c"),  # b is too short
        ("a a", "b b", "c c c c c"),  # a and b together have 4, with c 7
        ("a a", "z", "c c"),  # text, but no piece
        ("a", "b", "c c"),  # two are too short
        ("a a a", "b b b b", "c c c c"),  # no two have at most 6
        ("a a", "a a", "c c"),  # b is untranslated
        ("a a", "b b", "c c"),  # the first again
        ("a a", "", ""),  # one language
    ]
    (tmp_path / "x.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    (tmp_path / "y.tsv").write_text("d d\te e\tf f f\n")
    settings = {"min_pieces": 2, "max_pair_pieces": 6, "drop_identical": True, "drop_duplicates": True}
    (found,) = opened(f"a-b-c={tmp_path}/x.tsv,c-a-b={tmp_path}/y.tsv", **settings)
    assert (found.name, found.languages, len(found)) == ("a-b-c", ("a", "b", "c"), 7)
    lengths = [[2, 2, 2], [2, 0, 2], [2, 0, 2], [2, 2, 0], [2, 0, 2], [2, 0, 2], [2, 3, 2]]
    assert found.lengths.tolist() == lengths
    assert everything(found) == [*(rows[i] for i in (0, 1, 2, 3, 4, 7)), ("e e", "f f f", "d d")]
    first, second = found.report
    assert first["skipped"] == {"empty": 1, "duplicate": 1, "too_few_pieces": 1, "too_many_pieces": 1}
    wanted = {"empty_b": 1, "no_pieces_b": 1, "too_few_pieces_b": 1, "too_many_pieces_c": 1, "identical_b": 1, "cut": 0}
    assert first["noted"] == wanted and (first["read"], first["kept"]) == (10, 6)
    assert (second["read"], second["kept"], second["skipped"]) == (1, 1, {})


def test_one_language_in_another_encoding_among_several(tmp_path, opened):
    """Its lines would be used in the others alone, in silence."""
    rows = [b"the dog\tder H\xfcnd\tle chien\n"] * 60 + [b"the cat\tdie Katze\tle chat\n"] * 40
    (tmp_path / "latin.tsv").write_bytes(b"".join(rows))
    with pytest.raises(UserError, match=r"latin\.tsv: 60 of 100 are not UTF-8"):
        opened(f"en-de-fr={tmp_path}/latin.tsv")


def test_lengths_are_counted_whole_and_cut_to_the_training_length(tmp_path, opened):
    spec = f"en-de={write(tmp_path / 'a.tsv', [('a ' * 40, 'b'), ('a ' * 7, 'b ' * 6)])}"
    (pair,) = opened(spec, max_length=8)
    assert pair.lengths.tolist() == [[6, 1], [6, 6]] and pair.lengths.dtype == np.int32
    (pair,) = opened(spec, max_length=8, max_pair_pieces=40)  # 41 before the cut
    assert pair.lengths.tolist() == [[6, 6]]


def test_random_access_over_shards(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD_PAIRS", 7)
    monkeypatch.setattr(prepare, "BLOCK_PAIRS", 3)
    rows = [(f"sentence {i}" + " x" * (i % 5), f"Satz {i}" if i % 3 else "z") for i in range(50)]
    (pair,) = opened(f"en-de={write(tmp_path / 'a.tsv', rows)}")
    kept = [row for row in rows if row[1] != "z"]
    assert len(list((tmp_path / "cache").rglob("*.array_record-*-of-00008"))) == 8
    assert everything(pair) == kept
    assert pair.lengths[:, 0].tolist() == [len(a.split()) for a, _ in kept]
    wanted = random.Random(0).choices(range(len(kept)), k=100)
    assert pair.read(np.array(wanted)) == [kept[i] for i in wanted]
    assert pair.read([]) == []
    for outside in (-1, len(kept)):
        with pytest.raises(IndexError):
            pair.read([outside])


def test_the_message_is_renewed_and_every_pair_is_still_itself(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(prepare, "MESSAGE_PAIRS", 3)
    rows = [(f"sentence {i} {'x' * (i % 4)}", f"Satz {i}") for i in range(10)]
    (pair,) = opened(f"en-de={write(tmp_path / 'a.tsv', [(a.strip(), b) for a, b in rows])}")
    assert everything(pair) == [(a.strip(), b) for a, b in rows]


MEMORY = """
import sys
from pathlib import Path
from ppa_jax.data import prepare, sources
for spec in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    (source,) = sources.parse_pairs(spec)
    prepare.prepare(source, sources.Cleaning(), Path(sys.argv[1]))
    kilobytes = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())["VmHWM"].split()[0]
    print(int(kilobytes) / 1024)
"""


def test_preparing_keeps_no_text(tmp_path):
    """A protocol buffer keeps what was ever put into it: 80 MB here, if it is not renewed."""
    specs = []
    for name, pairs in (("few", 20_000), ("many", 60_000)):
        write(tmp_path / f"{name}.tsv", ((f"{i} " + "x" * 1000, "y" * 1000) for i in range(pairs)))
        specs.append(f"en-de={tmp_path}/{name}.tsv")
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "cache"), *specs]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    few, many = map(float, done.stdout.split())
    assert many < few + 30


def test_prepared_corpus_is_a_tfds_dataset(tmp_path, opened):
    import tensorflow_datasets as tfds

    opened(f"en-de={write(tmp_path / 'a.tsv', [('naïve', 'naïv'), ('two', 'zwei')])}")
    (info,) = (tmp_path / "cache").rglob("dataset_info.json")
    rows = tfds.builder_from_directory(info.parent).as_data_source("train")
    assert [rows[0]["a"].decode(), rows[1]["b"].decode(), len(rows)] == ["naïve", "zwei", 2]
    (pair,) = opened(f"a-b=tfds:{info.parent}")  # and so a source itself
    assert everything(pair) == [("naïve", "naïv"), ("two", "zwei")]


def test_prepared_once_reported_alike_and_again_after_a_change(tmp_path, opened, monkeypatch):
    path = write(tmp_path / "a.tsv", [("one", "eins"), ("", "zwei")])
    first = opened(f"en-de={path}")[0]
    with monkeypatch.context() as patch:
        patch.setattr("ppa_jax.data.sources.read_pairs", None)  # a second reading would fail
        again = opened(f"en-de={path}")[0]
        opened(f"en-de={path}", min_pieces=0)  # a filter of pieces needs no second reading
    assert again.report == first.report and again.report[0]["skipped"] == {"empty": 1}
    write(path, [("three", "drei")])
    assert everything(opened(f"en-de={path}")[0]) == [("three", "drei")]
    write(path, [("three", "drei"), ("four", "vier")])
    assert everything(opened(f"en-de={path}", max_characters=4)[0]) == [("four", "vier")]


def test_text_is_identified_by_its_content(tmp_path, opened):
    """Texts of equal lengths in pieces differ; a copy, and lines that are skipped, make no difference."""

    def digests(name, pairs):
        return opened(f"en-de={write(tmp_path / name, pairs)}")[0].digests

    pairs = [("one two", "eins zwei"), ("three", "drei")]
    first = digests("a.tsv", pairs)
    assert digests("b.tsv", [*pairs, ("", "")]) == first
    changed = [
        digests("c.tsv", [("one one", "eins zwei"), ("three", "drei")]),
        digests("d.tsv", pairs[::-1]),
        digests("e.tsv", [("one", "two eins zwei"), ("three", "drei")]),
    ]
    assert len({*map(tuple, [first, *changed])}) == 4
    assert first == [hashlib.sha256(b"one two\teins zwei\nthree\tdrei\n").hexdigest()[:16]]


def test_report_names_sources_as_written_this_time(tmp_path, opened, monkeypatch):
    path = write(tmp_path / "a.tsv", [("one", "eins")])
    opened(f"en-de={path}")
    monkeypatch.chdir(tmp_path)
    assert opened("en-de=a.tsv")[0].report[0]["source"] == "en-de=a.tsv"
    assert len(list((tmp_path / "cache").glob("[!.]*"))) == 2  # one corpus, one choice of pairs


def test_another_tokenizer_counts_again(tmp_path, opened, tokenizer):
    from dataclasses import replace

    from tokenizers import pre_tokenizers

    backend = pickle.loads(pickle.dumps(tokenizer)).backend
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # letters
    letters = replace(tokenizer, backend=backend, fingerprint="letters")
    path = write(tmp_path / "a.tsv", [("ab cd", "efg")])
    limits = {"min_pieces": 1, "max_pair_pieces": 128, "max_length": 64, "cache_dir": tmp_path / "cache"}
    assert opened(f"en-de={path}")[0].lengths.tolist() == [[2, 1]]
    assert open_pairs(f"en-de={path}", letters, **limits)[0].lengths.tolist() == [[5, 3]]


def test_no_usable_pair_says_why(tmp_path, opened):
    (tmp_path / "a.tsv").write_text("no tab\nnone here\n\tempty\n")
    with pytest.raises(
        UserError, match=r"a\.tsv: no usable pair; 3 read, .*no_tab 2, empty 1; the first is no_tab: 'no tab'"
    ):
        opened(f"en-de={tmp_path}/a.tsv")
    write(tmp_path / "b.tsv", [("a", "b"), ("a", "z")])
    message = (
        r"b\.tsv: no usable pair; 2 read, .*no_pieces 1.* \(data\.min_pieces=3.*first has 1 and 1 pieces: 'a' \| 'b'"
    )
    with pytest.raises(UserError, match=message):
        opened(f"en-de={tmp_path}/b.tsv", min_pieces=3)
    (tmp_path / "blank.txt").write_text("\n\n")
    with pytest.raises(UserError, match=r"blank\.txt: no usable pair; 0 read, skipped: none$"):
        opened(f"en={tmp_path}/blank.txt")
    assert not unfinished(tmp_path / "cache")


@pytest.mark.parametrize(("accents", "told"), [(60, "refused"), (40, "warned"), (0, "silent")])
def test_text_in_another_encoding_is_not_thinned_out_in_silence(tmp_path, opened, caplog, accents, told):
    """Only the sentences with accents are no UTF-8: the rest would be trained on as if it were the corpus."""
    lines = ["the dog\tder H\xfcnd\n"] * accents + ["the cat\tdie Katze\n"] * (100 - accents)
    (tmp_path / "latin.tsv").write_bytes("".join(lines).encode("latin-1"))
    spec = f"en-de={tmp_path}/latin.tsv"
    if told == "refused":
        with pytest.raises(UserError, match=r"latin\.tsv: 60 of 100 are not UTF-8; .*iconv -f ISO-8859-1"):
            opened(spec)
        assert not unfinished(tmp_path / "cache")
        return
    for _ in range(2):  # from the cache as well
        caplog.clear()
        assert len(opened(spec)[0]) == 100 - accents
        assert ("40 of 100 are not UTF-8; in another encoding" in caplog.text) == (told == "warned")


def test_lines_of_one_language_are_counted_as_lines(tmp_path, opened):
    """Though they are stored two by two."""
    (tmp_path / "en.txt").write_bytes(b"a b\nc d\n\nz\ne f\n\xff\ng h\n<range>\ni j\n" + b"k l\n" * 196)
    (tmp_path / "more.txt").write_text("a\nb b b b\nc c c c\n")
    (pair,) = opened(f"en={tmp_path}/en.txt,en={tmp_path}/more.txt", max_length=5)
    assert [(r["read"], r["kept"], r["rows"], r["skipped"], r["noted"]["cut"]) for r in pair.report] == [
        (204, 200, 100, {"not_utf8": 1, "marker": 1, "no_pieces": 1, "beside_no_pieces": 1}, 0),
        (3, 3, 2, {}, 2),
    ]
    assert len(pair) == 102 and pair.read([101]) == [("c c c c", "c c c c")]
    assert sources_table([pair])[1][-1][:4] == ("en", "all", 207, 203)


def test_every_source_is_checked_before_the_first_is_prepared(tmp_path, opened):
    write(tmp_path / "a.tsv", [("one", "eins")])
    (tmp_path / "m.en").write_text("1\n2\n")
    (tmp_path / "m.de").write_text("1\n")
    with pytest.raises(UserError, match=r"m\.en has 2 lines but .*m\.de has 1"):
        opened(f"en-de={tmp_path}/a.tsv,en-de={tmp_path}/m")
    assert not (tmp_path / "cache").exists()


def unfinished(cache):
    return [path for path in cache.glob(".*") if path.suffix != ".lock"]


def prepare_and_die(spec, cache):
    read_pairs = prepare.sources.read_pairs

    def read_some(*args):
        yield from itertools.islice(read_pairs(*args), 10)
        os._exit(9)

    prepare.sources.read_pairs = read_some
    prepare.prepare(parse_pairs(spec)[0], Cleaning(), cache)


def test_repeated_lines_of_one_language_are_not_promised_away(tmp_path, opened):
    """Lines are stored two by two: a repeated one would stay wherever its neighbour is another."""
    (tmp_path / "en.txt").write_text("a b\nc d\na b\n")
    with pytest.raises(UserError, match="drop_duplicates: works on pairs, and en is text of one language"):
        opened(f"en={tmp_path / 'en.txt'}", drop_duplicates=True)


def test_a_kill_while_preparing_leaves_nothing_half_read(tmp_path, opened):
    cache = tmp_path / "cache"
    spec = f"en-de={write(tmp_path / 'a.tsv', [(f'sentence {i}', f'Satz {i}') for i in range(20)])}"
    process = multiprocessing.get_context("spawn").Process(target=prepare_and_die, args=(spec, cache))
    process.start()
    process.join()
    assert process.exitcode == 9 and len(unfinished(cache)) == 1
    assert len(opened(spec)[0]) == 20
    assert not unfinished(cache), "what the killed process left is still there"


def test_two_processes_prepare_the_same_where_there_are_no_locks(tmp_path, opened, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    (source,) = parse_pairs(f"en-de={write(tmp_path / 'a.tsv', [('one', 'eins')])}")
    write_dataset = prepare._write_dataset

    def overtaken(*args):
        monkeypatch.setattr(prepare, "_write_dataset", write_dataset)
        prepare.prepare(source, Cleaning(), tmp_path / "cache")  # the other one, faster
        write_dataset(*args)

    monkeypatch.setattr(prepare, "_write_dataset", overtaken)
    assert prepare.prepare(source, Cleaning(), tmp_path / "cache").num_pairs == 1
    assert len(list((tmp_path / "cache").glob("[!.]*"))) == 1


@pytest.mark.parametrize(
    ("module", "writer", "error"),
    [
        (np.lib.format, "write_array_header_2_0", OSError(errno.ENOSPC, "No space left on device")),
        (prepare, "_write_shards", RuntimeError("write() failed: No space left on device; writing /x")),  # ArrayRecord
    ],
)
def test_full_disk(tmp_path, opened, monkeypatch, module, writer, error):
    def full(*args):
        raise error

    spec = f"en-de={write(tmp_path / 'a.tsv', [('one', 'eins')])}"
    monkeypatch.setattr(module, writer, full)
    with pytest.raises(UserError, match=r"cache.*: no space left on the device.* choose another cache directory"):
        opened(spec)
    monkeypatch.undo()
    assert len(opened(spec)[0]) == 1


def test_cache_that_cannot_be_written(tmp_path, opened):
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(UserError, match=r"cache: cannot be written: File exists; choose another cache directory"):
        opened(f"en-de={write(tmp_path / 'a.tsv', [('one', 'eins')])}")


def test_damaged_cache_is_named(tmp_path, opened):
    path = write(tmp_path / "a.tsv", [("one", "eins")])
    opened(f"en-de={path}")
    next((tmp_path / "cache").rglob("prepared.json")).write_text("{")
    with pytest.raises(UserError, match=r"this prepared corpus is damaged .* delete the folder"):
        opened(f"en-de={path}")


def test_threads_and_other_processes_read_alike(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD_PAIRS", 40)
    rows = [(f"sentence {i}", f"Satz {i}") for i in range(200)]
    (pair,) = opened(f"en-de={write(tmp_path / 'a.tsv', rows)}")
    draws = [random.Random(seed).choices(range(200), k=30) for seed in range(40)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(pair.read, draws)) == [[rows[i] for i in draw] for draw in draws]
    packed = pickle.dumps(pair)
    assert len(packed) < 5000  # no text, no arrays
    copy = pickle.loads(packed)
    assert copy.read(draws[0]) == pair.read(draws[0]) and copy.lengths.tolist() == pair.lengths.tolist()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(pair.read, draws[:2]) == [pair.read(draw) for draw in draws[:2]]


def test_threads_take_turns_at_the_lazy_module(monkeypatch):
    """Two threads at the first touch of tensorflow-datasets' lazy modules would wait for each other without end."""
    from tensorflow_datasets import proto

    real = proto.tf_example_pb2.Example
    record = real()
    for field, text in (("a", b"one"), ("b", b"eins")):
        record.features.feature[field].bytes_list.value.append(text)
    inside, seen = [], []

    class Lazy(types.ModuleType):
        @property
        def Example(self):
            inside.append(self)
            seen.append(len(inside))
            time.sleep(0.02)
            inside.pop()
            return real

    monkeypatch.setattr(proto, "tf_example_pb2", Lazy("tf_example_pb2"))
    with ThreadPoolExecutor(4) as pool:
        decoded = pool.map(prepare.decode, [[record.SerializeToString()]] * 4)
        assert list(decoded) == [[("one", "eins")]] * 4
    assert seen == [1] * 4


def test_sources_table(tmp_path, opened):
    write(tmp_path / "a.tsv", [("one", "eins"), ("", "zwei"), ("three", "drei")])
    write(tmp_path / "b.tsv", [("four", "vier")])
    _, rows = sources_table(opened(f"en-de={tmp_path}/a.tsv,en-de={tmp_path}/b.tsv"))
    assert rows[0] == ("en-de", f"{tmp_path}/a.tsv", 3, 2, "empty 1", "none")
    assert rows[2][:4] == ("en-de", "all", 4, 3)


def test_report_is_plain_json(tmp_path, opened):
    (pair,) = opened(f"en-de={write(tmp_path / 'a.tsv', [('one', 'eins')])}")
    assert json.loads(json.dumps(pair.report)) == pair.report


@pytest.mark.shared_data
def test_real_corpora(shared, tmp_path):
    """Verses absent on one side, `<range>` markers and a tab-separated source, with a real tokenizer."""
    bible, tldr = shared / "data/bible", shared / "data/tldr"
    tokenizer = load_tokenizer(shared / "models/minimbert")
    spec = f"en-ru={bible}/eng_nt_BSB.txt|{bible}/org_nt_RUSSYN.txt,en-de={tldr}/en-de.tsv"
    limits = {"min_pieces": 10, "max_pair_pieces": 128, "max_length": 32}
    en_ru, en_de = open_pairs(spec, tokenizer, cache_dir=tmp_path, **limits)
    left = (bible / "eng_nt_BSB.txt").read_text("utf-8").split("\n")
    right = (bible / "org_nt_RUSSYN.txt").read_text("utf-8").split("\n")
    usable = []
    for a, b in zip(left, right, strict=True):
        pieces = [len(ids) for ids in tokenizer.encode([a, b])]
        if a.strip() and b.strip() and "<range>" not in (a, b) and min(pieces) >= 10 and sum(pieces) <= 128:
            usable.append(((a.strip(), b.strip()), [min(30, length) for length in pieces]))
    assert everything(en_ru) == [texts for texts, _ in usable]
    assert en_ru.lengths.tolist() == [lengths for _, lengths in usable]
    assert en_ru.report[0]["read"] == 7957 and len(en_de) > 1000
