import gzip
import json
import sys
import tracemalloc
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppa_jax.data import sample
from ppa_jax.data.sources import Cleaning, Counts, check, identity, parse_pairs, read_pairs
from ppa_jax.errors import UserError


def read(spec, **cleaning):
    """Checks and reads one source: its pairs and counts."""
    (source,) = parse_pairs(spec)
    check(source)
    counts = Counts()
    pairs = list(read_pairs(source, Cleaning(**cleaning), counts))
    texts = 2 * len(pairs) - counts.noted["odd_line"]
    assert counts.kept == (len(pairs) if len(source.languages) > 1 else texts) and counts.read == counts.kept + sum(
        counts.skipped.values()
    )
    return pairs, counts


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_tsv(directory, content, name="x.tsv", **cleaning):
    return read(f"en-de={write(directory / name, content)}", **cleaning)


# The form of data.pairs


def test_parse_keeps_order_and_kinds(tmp_path):
    write(tmp_path / "a.tsv", "a\tb\n")
    write(tmp_path / "m.en", "a\n")
    write(tmp_path / "m.zh_Hans", "b\n")
    spec = f"en-de={tmp_path}/a.tsv, en-zh_Hans={tmp_path}/m,\nde-fr={tmp_path}/a.tsv|{tmp_path}/m.en,es-ru=sample:3-9,"
    sources = parse_pairs(spec)
    assert [source.kind for source in sources] == ["tsv", "lines", "lines", "sample"]
    assert [source.languages for source in sources] == [("en", "de"), ("en", "zh_Hans"), ("de", "fr"), ("es", "ru")]
    assert sources[1].paths == (tmp_path / "m.en", tmp_path / "m.zh_Hans")


def test_text_of_one_language_is_read_as_neighbours(tmp_path):
    write(tmp_path / "a.txt", "one\n\ntwo\n<range>\nthree four five six\n")
    write(tmp_path / "b.txt", b"seven\n\xff\n\teight\x00\n")
    spec = f"en={tmp_path}/a.txt|{tmp_path}/b.txt"
    (source,) = parse_pairs(spec)
    assert (source.languages, source.kind, len(source.paths)) == (("en",), "text", 2)
    pairs, counts = read(spec, max_characters=10)
    assert pairs == [("one", "two"), ("three four", "five six"), ("seven", "eight")]
    assert counts.skipped == {"marker": 1, "not_utf8": 1} and +counts.noted == {"split_lines": 1}
    assert counts.read == counts.kept + 2
    pairs, counts = read(f"en={tmp_path}/a.txt")
    assert pairs == [("one", "two"), ("three four five six",) * 2] and counts.noted["odd_line"] == 1
    said = sample.sentences("de", 5, 9)
    assert read("de=sample:5-9")[0] == [(said[0], said[1]), (said[2], said[3])]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("en=nowhere.txt", "no such file: nowhere.txt"),
        ("en:de=a.tsv", "not of the form lang1-lang2=SOURCE"),
        ("en-de", "not of the form"),
        ("corpus.tsv", "not of the form"),
        ("en-de-fr=a.tsv", "no such file: a.tsv"),
        ("en-pt-BR=a.tsv", "not of the form"),
        ("en-de=a.txt|b", "no such file: a.txt"),
        ("en-de=a|b|c", "one bar"),
        ("en-de=|b", "one bar"),
        ("en-en=sample", "one language twice"),
        ("en-de=sample,en-de=sample", "given 2 times"),
        ("en-de=nowhere.tsv", "no such file: nowhere.tsv"),
        ("en-de=nowhere", "no such file: nowhere, nor nowhere.en with nowhere.de"),
        ("en-de=nowhere.csv", "no such file: nowhere.csv"),
        ("en-de=nowhere.tsv[a,b]", "no such file: nowhere.tsv"),
        ("en-de=hf:x[a]", "give one column for each of en, de"),
        ("en-de=hf:x[a,]", "give one column for each of en, de"),
        ("en=hf:x[a,b]", "give one column for each of en"),
        ("en-de=sample[en,de]", "columns are of CSV, TSV, "),
        ("en-de=a.csv|b.csv", "a bar joins plain text files"),
        ("", "no source given"),
        (" , ", "no source given"),
    ],
)
def test_wrong_form(spec, message):
    with pytest.raises(UserError, match=message) as error:
        parse_pairs(spec)
    assert str(error.value).startswith("data.pairs: ") and "\n" not in str(error.value)


def test_comma_in_a_path_is_explained(tmp_path):
    write(tmp_path / "a,b.tsv", "a\tb\n")
    with pytest.raises(UserError, match=r"'b\.tsv' is not of the form .* a path must not hold one"):
        parse_pairs(f"en-de={tmp_path}/a,b.tsv")


def test_directory_and_half_a_prefix(tmp_path):
    with pytest.raises(UserError, match="is a directory; give a file, a prefix"):
        parse_pairs(f"en-de={tmp_path}")
    write(tmp_path / "m.de", "b\n")
    with pytest.raises(UserError, match=r"no such file: .*m\.en \(or \.gz\), though the other side"):
        parse_pairs(f"en-de={tmp_path}/m")


@given(st.text(alphabet="en-de=|,:. /\tx", max_size=30))
def test_parser_answers_anything_with_sources_or_one_line(spec):
    try:
        assert parse_pairs(spec)
    except UserError as error:
        assert "\n" not in str(error)


# Text files


def test_tsv_skips_and_counts(tmp_path):
    content = (
        b"one\teins\n"
        b"no tab here\n"
        b"two\tzwei\t0.98\n"  # a third column: left out
        b"\tleer\n"
        b"bad \xff\xfe bytes\tschlecht\n"
        b"\n"
        b"<range>\tdrei\n"
        b"f\x00ou\x07r\tvier\x1b\n"  # control characters become spaces
        b"\x01\x02\tnur Steuerzeichen\n"
        b"last\tletzte"  # no line feed at the end
    )
    pairs, counts = read_tsv(tmp_path, content)
    assert pairs == [("one", "eins"), ("two", "zwei"), ("f ou r", "vier"), ("last", "letzte")]
    assert counts.skipped == {"no_tab": 1, "empty": 3, "not_utf8": 1, "marker": 1}
    assert counts.noted == {"extra_columns": 1, "control_characters": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["\ten\tde", "0\tone\teins", "1\ttwo\tzwei"], r"begins with '\\ten\\tde': the first column holds row numbers"),
        (
            ["0\tone\teins", "1\ttwo\tzwei"],
            r"begins with '0\\tone\\teins': the first column holds row numbers; .*x\.tsv\[2,3\]$",
        ),
        (
            ["one\teins\t0.9", "two\tzwei\t0.8"],
            r"begins with 'one\\teins\\t0\.9': more than two columns .*x\.tsv\[1,2\]$",
        ),
        (["id\ten", "17\tone", "18\ttwo"], r"begins with 'id\\ten': the en side is a number in nearly every line"),
        (["one\t1", "two\t2"], r"begins with 'one\\t1': the de side is a number"),
        (
            ["en,de", 'one,"eins, zwei"', "", "two,zwei"],
            r"begins with 'en,de': comma-separated, .*rename it to end in \.csv",
        ),
    ],
)
def test_other_layouts_are_refused_with_their_first_line(tmp_path, rows, message):
    with pytest.raises(UserError, match=rf"data\.pairs: en-de=.*x\.tsv: {message}"):
        read_tsv(tmp_path, "\n".join(rows) + "\n")


def test_a_file_of_numbers_is_no_side(tmp_path):
    a, b = write(tmp_path / "a.txt", "1\n2\n"), write(tmp_path / "b.txt", "one\ntwo\n")
    with pytest.raises(UserError, match=r"begins with '1' \| 'one': the en side is a number"):
        read(f"en-de={a}|{b}")


def test_some_numbers_and_further_columns_are_no_other_layout(tmp_path):
    rows = [*["one\teins"] * 80, *["1\t1"] * 10, *["two\tzwei\tx"] * 10, *["three\tdrei\t"] * 100]
    assert len(read_tsv(tmp_path, "\n".join(rows))[0]) == 200
    _, counts = read_tsv(tmp_path, "one, two\teins\n" + "one, two\n" * 5)
    assert counts.skipped == {"no_tab": 5}


def test_byte_order_mark_and_crlf(tmp_path):
    pairs, counts = read_tsv(tmp_path, b"\xef\xbb\xbfa\tb\r\nc\td\r\n")
    assert pairs == [("a", "b"), ("c", "d")] and not counts.skipped and not counts.noted


def test_only_a_line_feed_ends_a_line(tmp_path):
    left = "one\u2028still one\ntwo\u0085\x0cstill two\r\nthree\rstill three\n"
    write(tmp_path / "m.en", left)
    write(tmp_path / "m.de", "eins\nzwei\ndrei\n")
    pairs, _ = read(f"en-de={tmp_path}/m")
    assert [b for _, b in pairs] == ["eins", "zwei", "drei"]
    assert pairs[0][0] == "one\u2028still one" and pairs[2][0] == "three still three"


def test_two_files_stay_aligned_over_what_is_skipped(tmp_path):
    a = write(tmp_path / "a.txt", b"a0\n\na2\n\xff\na4\nx\ta5\n")
    b = write(tmp_path / "b.txt", b"b0\nb1\n<range>\nb3\nb4\nb5")
    pairs, counts = read(f"en-de={a}|{b}")
    assert pairs == [("a0", "b0"), ("a4", "b4"), ("x a5", "b5")]
    assert counts.skipped == {"empty": 1, "marker": 1, "not_utf8": 1} and not counts.noted


def test_unequal_line_counts_are_found_before_anything_is_read(tmp_path):
    a, b = write(tmp_path / "a.txt", "1\n2\n3\n"), write(tmp_path / "b.txt", "1\n2")
    (source,) = parse_pairs(f"en-de={a}|{b}")
    with pytest.raises(UserError, match=r"a\.txt has 3 lines but .*b\.txt has 2"):
        check(source)
    with pytest.raises(UserError, match=r"a\.txt has 3 lines but .*b\.txt has 2"):  # changed after the check
        list(read_pairs(source, Cleaning(), Counts()))


def test_gzip(tmp_path):
    tsv = write(tmp_path / "x.tsv.gz", gzip.compress("\ufeffa\tb\nc\td\n".encode()))
    assert read(f"en-de={tsv}")[0] == [("a", "b"), ("c", "d")]
    write(tmp_path / "m.en.gz", gzip.compress(b"a\nb\n"))
    write(tmp_path / "m.de", "c\nd\n")
    assert read(f"en-de={tmp_path}/m")[0] == [("a", "c"), ("b", "d")]


def test_damaged_gzip(tmp_path):
    packed = gzip.compress(b"".join(b"%d sentence\t%d Satz\n" % (i, i * i) for i in range(50_000)))
    path = write(tmp_path / "x.tsv.gz", packed[: len(packed) // 2])
    with pytest.raises(UserError, match=r"x\.tsv\.gz: the gzip data is damaged"):
        read(f"en-de={path}")
    with pytest.raises(UserError, match=r"named .gz but not gzip data"):
        read_tsv(tmp_path, "a\tb\n", "y.tsv.gz")


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_empty_file(tmp_path, content):
    with pytest.raises(UserError, match=r"x\.tsv is empty"):
        read_tsv(tmp_path, content)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])  # with a byte order mark and without
def test_utf16_is_refused(tmp_path, encoding):
    with pytest.raises(UserError, match=r"x\.tsv: UTF-16 .* iconv -f UTF-16"):
        read_tsv(tmp_path, "a sentence\tein Satz\n".encode(encoding))


def test_long_lines_are_counted_and_never_held(tmp_path):
    full, over, endless = "x" * 10_000, "x" * 10_001, "y" * 3_000_000
    content = f"{full}\tkept\n{over}\ttoo long\n{endless}\tfar too long\nend\tEnde\n"
    tracemalloc.start()
    pairs, counts = read_tsv(tmp_path, content)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000  # the content itself, twice, and a little more
    tracemalloc.stop()
    assert [b for _, b in pairs] == ["kept", "Ende"] and counts.skipped == {"too_long_text": 2}
    a, b = write(tmp_path / "a", f"{endless}\nend\n"), write(tmp_path / "b", "eins\nEnde\n")
    assert read(f"en-de={a}|{b}")[0] == [("end", "Ende")]


def test_settings_of_the_reader(tmp_path):
    path = write(tmp_path / "x.tsv", "<range>\tb\n-\tc\nabcd\td\n")
    assert read(f"en-de={path}", skip_lines=("-",), max_characters=7)[0] == [("<range>", "b"), ("abcd", "d")]
    assert read(f"en-de={path}", skip_lines=(), max_characters=4)[0] == [("-", "c"), ("abcd", "d")]


def test_identity_follows_the_file(tmp_path):
    path = write(tmp_path / "x.tsv", "a\tb\n")
    (source,) = parse_pairs(f"en-de={path}")
    before = identity(source)
    assert identity(source) == before
    write(path, "a\tb\nc\td\n")
    assert identity(source) != before


# Tables

CSV = (
    'id,en,de\n1,"one, two","eins, zwei"\n2,plain,schlicht\n3,"he said ""no""","er sagte ""nein"""\n'
    '4,"two\nlines","zwei\nZeilen"\n5,stray "quotes" inside,egal\n6,,leer\n7,short\n\n8,a comma, too many,zu viele\n'
    '9,"open,offen\n'
)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_csv(tmp_path, delimiter, name):
    import csv

    texts = [("one, two; three", 'eins, "zwei"; drei'), ("plain", "schlicht"), ("a\ttab", "two\nlines")] * 4
    path = tmp_path / name
    with (gzip.open if name.endswith(".gz") else open)(path, "wt", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("n", "de", "en"), *((1, b, a) for a, b in texts)])
    pairs, counts = read(f"en-de={path}")
    assert pairs == [tuple(" ".join(text.split()) for text in pair) for pair in texts]
    assert not counts.skipped and counts.noted["control_characters"] == 4, "a line feed inside a field"
    assert read(f"en-de={path}[3,2]")[0] == [("en", "de"), *pairs], "by number every row is text"
    texts = read(f"de={path}[de]")[0]
    assert texts[0] == (pairs[0][1], pairs[1][1]), "the rows of one column as text of one language"


def test_csv_skips_and_counts(tmp_path):
    path = write(tmp_path / "x.csv", CSV.encode() + b"10,bad \xff,schlecht\n" + b"11," + b"x" * 200_000 + b",lang\n")
    with pytest.raises(UserError, match=r"x\.csv:13: a field in quotes begins here and is not closed"):
        read(f"en-de={path}")
    path.write_bytes(path.read_bytes().replace(b'9,"open,', b'9,"open" and shut,'))
    pairs, counts = read(f"en-de={path}")
    assert pairs == [
        ("one, two", "eins, zwei"),
        ("plain", "schlicht"),
        ('he said "no"', 'er sagte "nein"'),
        ("two lines", "zwei Zeilen"),
        ('stray "quotes" inside', "egal"),
    ]
    # No text, no column, a blank line; too many fields, quotes that end too early; the rest as in other files.
    assert counts.skipped == {"empty": 3, "not_csv": 2, "not_utf8": 1, "too_long_text": 1}


def test_csv_without_the_columns(tmp_path):
    path = write(tmp_path / "x.csv", "Good morning,Guten Morgen\nYes,Ja\n")
    said = r"no columns named en and de \(columns: Good morning, Guten Morgen\); .*: .*x\.csv\[Good morning,Guten .*\]"
    with pytest.raises(UserError, match=rf"{said}; or by number, as \[1,2\], where the first row is no header"):
        read(f"en-de={path}")
    assert read(f"en-de={path}[1,2]")[0] == [("Good morning", "Guten Morgen"), ("Yes", "Ja")]
    with pytest.raises(UserError, match=r"no columns named 1 and 3 \(columns: 1, 2\)"):
        read(f"en-de={path}[1,3]")


def test_columns_of_a_tsv_file(tmp_path):
    path = write(tmp_path / "x.tsv", 'score\tsource\ttarget\n0.9\t"one\teins\n0.8\ttwo\n0.7\tthree\tdrei\tx\n')
    pairs, counts = read(f"en-de={path}[source,target]")
    assert pairs == [('"one', "eins"), ("three", "drei")] and counts.skipped == {"empty": 1}
    assert read(f"de-en={path}[3,2]")[0] == [("target", "source"), ("eins", '"one'), ("drei", "three")]


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl"])
def test_tables_need_no_hf(tmp_path, name):
    rows = [{"source": "a cat", "target": "eine Katze"}]
    if name == "x.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        write(tmp_path / name, json.dumps(rows[0]))
    assert read(f"de-en={tmp_path}/{name}[target,source]")[0] == [("eine Katze", "a cat")]
    with pytest.raises(UserError, match=rf"no columns named de and en .* in brackets: .*{name}\[source,target\]$"):
        read(f"de-en={tmp_path}/{name}")


def test_identity_follows_the_columns(tmp_path):
    path = write(tmp_path / "x.csv", "a,b,c\n1,2,3\n")
    ((first,), (second,)) = (parse_pairs(f"en-de={path}[a,{x}]") for x in "bc")
    assert identity(first) != identity(second) and str(second) == f"en-de={path}[a,c]"


# Several languages in a line


def test_lines_of_several_languages_stay_aligned_over_what_is_left_out(tmp_path):
    write(tmp_path / "m.en", b"one\n\n<range>\nfour\nfive\nsix\n")
    write(tmp_path / "m.de", b"eins\nzwei\ndrei\n\xff\n\nsechs sechs sechs\n")
    write(tmp_path / "m.fr", b"un\ndeux\n\nquatre\n\nsi\x07x\n")
    (source,) = parse_pairs(f"en-de-fr={tmp_path}/m")
    assert (source.languages, source.kind) == (("en", "de", "fr"), "lines")
    pairs, counts = read(f"en-de-fr={tmp_path}/m", max_characters=10)
    expected = [("one", "eins", "un"), ("", "zwei", "deux"), ("four", "", "quatre"), ("six", "", "si x")]
    assert pairs == expected
    assert counts.skipped == {"empty": 2}  # lines in one language, or in none
    assert counts.noted == {"empty_en": 1, "not_utf8_de": 1, "too_long_text_de": 1, "control_characters": 1}
    bars = "|".join(str(tmp_path / f"m.{code}") for code in ("fr", "en", "de"))
    assert read(f"fr-en-de={bars}", max_characters=10)[0] == [(c, a, b) for a, b, c in expected]
    rows = ["one\teins\tun", "\tzwei\tdeux\textra", "four\t\tquatre", "six", "\t\tsept"]
    pairs, counts = read(f"en-de-fr={write(tmp_path / 'x.tsv', chr(10).join(rows))}")
    assert pairs == [("one", "eins", "un"), ("", "zwei", "deux"), ("four", "", "quatre")]
    assert counts.skipped == {"no_tab": 1, "empty": 1} and counts.noted == {
        "empty_en": 1,
        "empty_de": 1,
        "extra_columns": 1,
    }
    said = [sample.sentences(code, 5, 7) for code in ("ru", "en", "zh")]
    assert read("ru-en-zh=sample:5-7")[0] == [*zip(*said, strict=True)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("en-de-en=a.tsv", "names one language twice"),
        ("en-de-fr={0}|{1}", r"is not 3 files with bars between them, one for each of en, de, fr"),
        ("en-de-fr={0}|{1}|{1}", "is one file twice"),
        ("en-de-fr={0}|{1}|{2}", r"b\.txt has 1|c\.txt has 2"),
        ("en-de-fr={0}", "fewer than 3 columns"),
        ("a-b-c={3}", r"no such file: .*m\.c \(or \.gz\), though other sides are there"),
        ("en-de-fr={4}", "fewer than 3 columns in nearly every line; name the languages that it has"),
        ("zh-Hans-en={4}", "is not of the form .*languages have letters, digits and _"),
    ],
)
def test_mistakes_with_several_languages(tmp_path, spec, message):
    for name, content in (("m.a", "1\n"), ("m.b", "2\n"), ("b.txt", "x\n"), ("a.txt", "x\n"), ("c.txt", "y\nz\n")):
        write(tmp_path / name, content)
    write(tmp_path / "two.tsv", "one\teins\n" * 20)
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt", "m", "two.tsv")]
    with pytest.raises(UserError, match=message):
        read(spec.format(*paths))


# The built-in sample


def test_sample():
    pairs, _ = read("de-en=sample:5-8")
    assert len(pairs) == 3 and pairs == [(b, a) for a, b in read("en-de=sample:5-8")[0]]
    assert read("de-en=sample:6-7")[0] == [pairs[1]]


@pytest.mark.parametrize("location", ["sample:8-5", "sample:0-99999999", "sample:all", "world:0-9", "sample:1"])
def test_sample_out_of_range(location):
    with pytest.raises(UserError, match="write sample or sample:A-B with 0 <= A < B <= "):
        read(f"en-de={location}")


def test_sample_language():
    with pytest.raises(UserError, match=r"the built-in sample has .*, not xx"):
        read("en-xx=sample")


# Datasets on disk

ROWS = [("a cat", "eine Katze"), ("a dog", None), ("a cow", "eine Kuh")]


@pytest.fixture(params=["columns", "translation"])
def table(request):
    if request.param == "columns":
        return [{"id": i, "en": en, "de": de} for i, (en, de) in enumerate(ROWS)]
    return [{"id": i, "translation": {"en": en, "de": de}} for i, (en, de) in enumerate(ROWS)]


def test_hf_parquet(tmp_path, table):
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(table[:2]), tmp_path / "data" / "train-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(table[2:]), tmp_path / "data" / "train-00001-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "data" / "test-00000-of-00001.parquet")
    pairs, counts = read(f"de-en=hf:{tmp_path}")
    assert pairs == [("eine Katze", "a cat"), ("eine Kuh", "a cow")] and counts.skipped == {"empty": 1}
    (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()
    pq.write_table(pa.Table.from_pylist(table[2:]), tmp_path / "data" / "test-00000-of-00001.parquet")
    assert read(f"en-de=hf:{tmp_path}@test")[0] == [("a cow", "eine Kuh")]


def test_hf_saved_to_disk(tmp_path, table):
    """The layout of Dataset.save_to_disk: an arrow stream with two JSON files beside it."""
    data = pa.Table.from_pylist(table)
    with pa.ipc.new_stream(str(tmp_path / "data-00000-of-00001.arrow"), data.schema) as stream:
        stream.write_table(data)
    write(tmp_path / "state.json", "{}")
    write(tmp_path / "dataset_info.json", "{}")
    assert read(f"en-de=hf:{tmp_path}")[0] == [("a cat", "eine Katze"), ("a cow", "eine Kuh")]


@pytest.mark.parametrize("splits", [("train",), ("validation", "train")])
def test_hf_parallel_sentences(tmp_path, splits):
    """sentence-transformers' columns, as `datasets` itself saves a dataset and one of several splits."""
    datasets = pytest.importorskip("datasets")
    rows = {name: {"english": [name, "a cat"], "non_english": [name, "eine Katze"]} for name in splits}
    found = {name: datasets.Dataset.from_dict(columns) for name, columns in rows.items()}
    (datasets.DatasetDict(found) if len(found) > 1 else found["train"]).save_to_disk(tmp_path / "saved")
    assert read(f"en-de=hf:{tmp_path}/saved")[0] == [("train", "train"), ("a cat", "eine Katze")]
    assert read(f"de-en=hf:{tmp_path}/saved")[0] == [("train", "train"), ("eine Katze", "a cat")]
    assert read(f"de-fr=hf:{tmp_path}/saved[non_english,english]")[0][1] == ("eine Katze", "a cat")
    with pytest.raises(UserError, match=r"no columns named de and fr \(columns: english, non_english\)"):
        read(f"de-fr=hf:{tmp_path}/saved")


def test_hf_json_lines(tmp_path, table):
    wrong = {**table[0], "en": 5, "translation": {"en": 5, "de": "x"}}
    rows = "".join(json.dumps(row) + "\n" for row in [*table, wrong])
    write(tmp_path / "corpus.jsonl", rows + "{broken\n")
    pairs, counts = read(f"en-de=hf:{tmp_path}")
    assert pairs == [("a cat", "eine Katze"), ("a cow", "eine Kuh")]
    assert counts.skipped == {"empty": 1, "not_text": 1, "not_json": 1}
    (tmp_path / "corpus.jsonl").rename(tmp_path / "b.jsonl")
    assert read(f"en-de=hf:{tmp_path}/b.jsonl")[0] == pairs


def test_hf_text_of_one_language(tmp_path):
    """Every line of every row is a text; the column is `text`, the language's, or the only one of text."""
    for name, column in (("a", "text"), ("b", "en"), ("c", "sentence")):
        rows = [{"id": 1, column: None}, {"id": 0, column: "One.\nTwo."}, {"id": 2, column: "Three."}]
        rows = rows if name != "c" else rows[1:] + rows[:1]
        if name != "c":
            rows = [row | {"title": "no"} for row in rows]
        write(tmp_path / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in [*rows, {"id": 3, column: 5}]))
        pairs, counts = read(f"en=hf:{tmp_path}/{name}.jsonl")
        assert pairs == [("One.", "Two."), ("Three.", "Three.")]
        assert counts.skipped == {"empty": 1, "not_text": 1} and counts.noted == {"odd_line": 1}
    write(tmp_path / "d.jsonl", '{"one": "a", "two": "b"}\n')
    with pytest.raises(
        UserError, match=r"no column text or en, .*\(there are one, two\).* as in hf:.*/d.jsonl\[one\]$"
    ):
        read(f"en=hf:{tmp_path}/d.jsonl")
    assert read(f"en=hf:{tmp_path}/d.jsonl[two]")[0] == [("b", "b")]
    with pytest.raises(UserError, match=r"no column three \(there are one, two\)"):
        read(f"en=hf:{tmp_path}/d.jsonl[three]")


def test_hf_problems(tmp_path):
    with pytest.raises(UserError, match="no parquet, arrow or JSON lines files below"):
        read(f"en-de=hf:{tmp_path}")
    write(tmp_path / "test.jsonl", '{"en": "a", "de": "b"}\n')
    with pytest.raises(UserError, match="no file of a split named train below"):
        read(f"en-de=hf:{tmp_path}")
    write(tmp_path / "train.jsonl", '{"en": "a", "fr": "b"}\n')
    with pytest.raises(UserError, match=r"no columns named en and de \(columns: en, fr\)"):
        read(f"en-de=hf:{tmp_path}")
    write(tmp_path / "train.parquet", b"PAR1 cut short")
    with pytest.raises(UserError, match="holds files as json and as parquet"):
        read(f"en-de=hf:{tmp_path}")
    with pytest.raises(UserError, match="not a readable parquet file"):
        read(f"en-de=hf:{tmp_path}/train.parquet")
    with pytest.raises(UserError, match="write hf:NAME"):
        read("en-de=hf:")


def test_hf_hub_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # makes the import fail
    with pytest.raises(UserError, match="the package `datasets`, which would fetch it, is not installed"):
        read("en-de=hf:owner/corpus/de-en")


def test_hf_hub_without_network(monkeypatch):
    def unknown(*args):
        raise OSError("name or service not known")

    monkeypatch.setattr("ppa_jax.data.public_datasets.getproxies", dict)
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace())
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(UserError, match=r"no such directory, and huggingface\.co cannot be reached"):
        read("en-de=hf:owner/corpus")


def test_hf_hub_names(monkeypatch):
    """owner/name/config is tried as such, owner/name also as name/config; the training split is read."""

    class Split(list):
        info = types.SimpleNamespace(version="1.0.0")
        features = {"translation": types.SimpleNamespace(), "label": types.SimpleNamespace(names=["x"])}

    def load_dataset(name, config):
        if (name, config) in {("owner/corpus", "de-en"), ("corpus", "de-en")}:
            return {"test": Split(), "train": Split([{"translation": {"en": "a", "de": "b"}}])}
        raise FileNotFoundError(f"no {name} on the hub")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # no look at the network
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read("en-de=hf:owner/corpus/de-en")[0] == [("a", "b")]
    assert read("en-de=hf:corpus/de-en")[0] == [("a", "b")]
    with pytest.raises(UserError, match=r"the hub gave none .*no owner/other on the hub"):
        read("en-de=hf:owner/other")


@pytest.fixture(scope="module")
def tfds_directory(tmp_path_factory):
    """Prepared datasets as tensorflow-datasets writes them, without TensorFlow."""
    import tensorflow_datasets as tfds

    translation = tfds.features.Translation(languages=["en", "de"])
    features = {
        "flat": translation,
        "nested": tfds.features.FeaturesDict({"translation": translation}),
        "many": tfds.features.FeaturesDict({"texts": tfds.features.TranslationVariableLanguages()}),
    }
    complete = [{"en": en, "de": de or ""} for en, de in ROWS]
    rows = {
        "flat": complete,
        "nested": [{"translation": row} for row in complete],
        "many": [{"texts": {"en": en, "fr": "oui"} | ({"de": [de, "noch eine"]} if de else {})} for en, de in ROWS],
    }
    root = tmp_path_factory.mktemp("tfds")
    with tfds.core.registered.skip_registration():

        class Corpus(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in features]

            def _info(self):
                kept = features[self.builder_config.name]
                return tfds.core.DatasetInfo(builder=self, features=kept, disable_shuffling=True)

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(), "test": self._generate_examples()}

            def _generate_examples(self):
                yield from enumerate(rows[self.builder_config.name])

    # A builder inside a package would be looked up through importlib_resources, which TFDS does not declare.
    Corpus.__module__ = "corpus"
    for name in features:
        Corpus(data_dir=root, config=name, file_format="array_record").download_and_prepare()
    return root / "corpus"


@pytest.mark.parametrize("config", ["flat", "nested", "many"])
def test_tfds(tfds_directory, config):
    pairs, counts = read(f"de-en=tfds:{tfds_directory}/{config}")
    assert pairs == [("eine Katze", "a cat"), ("eine Kuh", "a cow")] and counts.skipped == {"empty": 1}


def test_tfds_text_of_one_language(tfds_directory):
    assert read(f"de=tfds:{tfds_directory}/flat")[0] == [("eine Katze", "eine Kuh")]


def test_tfds_problems(tfds_directory, tmp_path):
    with pytest.raises(UserError, match="holds 3 datasets or versions; give one of"):
        read(f"en-de=tfds:{tfds_directory}")
    with pytest.raises(UserError, match=r"no columns named en and fr \(columns: de, en\)|\(columns: en, de\)"):
        read(f"en-fr=tfds:{tfds_directory}/flat")
    with pytest.raises(UserError, match=r"no dataset_info.json below"):
        read(f"en-de=tfds:{tmp_path}")
    with pytest.raises(UserError, match=r"cannot prepare it .*DatasetNotFoundError"):
        read("en-de=tfds:no_such_dataset_anywhere")
