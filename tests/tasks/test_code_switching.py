"""Code-switching mixes languages but never examples."""

from collections import Counter

import numpy as np
import pytest

from ppa_jax.errors import UserError
from ppa_jax.tasks import nli, qa, squad
from ppa_jax.tasks.code_switching import code_switch


def translations(language, ids, label="neutral"):
    return [nli.Example(f"{language} premise {id}", f"{language} hypothesis {id}", label, language, id) for id in ids]


def test_code_switching_mixes_languages_and_never_pairs():
    ids = [str(i) for i in range(4000)]
    parallel = {"en": translations("en", ids), "de": translations("de", ids[::-1]), "zh": translations("zh", ids[1:])}
    found = code_switch(nli, parallel, "en=0.5,de=0.3,zh=0.2", 0.5, 0)
    assert [example.id for example in found] == ids[1:] * 3
    sides = []
    for example in found:
        premise, hypothesis = example.premise.split(), example.hypothesis.split()
        assert premise[1:] == ["premise", example.id] and hypothesis[1:] == ["hypothesis", example.id]
        assert example.label == "neutral"
        assert example.language == (premise[0] if premise[0] == hypothesis[0] else f"{premise[0]}-{hypothesis[0]}")
        sides.append((premise[0], hypothesis[0]))
    p = {"en": 0.5, "de": 0.3, "zh": 0.2}
    for a in p:
        for b in p:  # in half of the rows another language, by the probabilities
            expected = p[a] * 0.5 * (1 if a == b else p[b] / (1 - p[a]))
            assert abs(sides.count((a, b)) / 11997 - expected) < 4 * (expected * (1 - expected) / 11997) ** 0.5
    assert found[:3999] != found[3999:7998], "each pass draws its own languages"
    assert code_switch(nli, parallel, "en=0.5,de=0.3,zh=0.2", 0.5, 0) == found
    assert code_switch(nli, parallel, "en=0.5,de=0.3,zh=0.2", 0.5, 1) != found


def test_a_pivot_and_one_other_language_per_row():
    """PPA's kinds of pairs, en-en, xx-xx, en-xx and xx-en, equally often; never two languages other than the pivot."""
    ids = [str(i) for i in range(4000)]
    parallel = {language: translations(language, ids) for language in ("en", "de", "zh")}
    found = code_switch(nli, parallel, "pivot=en", 0.5, 0)
    sides = Counter((e.premise.split()[0], e.hypothesis.split()[0]) for e in found)
    assert set(sides) == {("en", "en"), *((a, b) for x in ("de", "zh") for a, b in [("en", x), (x, "en"), (x, x)])}
    expected = {pair: 0.25 if pair == ("en", "en") else 0.125 for pair in sides}
    for pair, share in expected.items():
        assert abs(sides[pair] / 12000 - share) < 4 * (share * (1 - share) / 12000) ** 0.5
    for rate in (0, 0.2, 1):
        found = code_switch(nli, parallel, "pivot=en", rate, 0)
        same = [e.premise.split()[0] == e.hypothesis.split()[0] for e in found]
        assert abs(np.mean(same) - (1 - rate)) < 4 * (rate * (1 - rate) / 12000) ** 0.5 + 1e-9
        english = np.mean([word.split()[0] == "en" for e in found for word in (e.premise, e.hypothesis)])
        assert abs(english - 0.5) < 0.02, "as often, whatever the rate"


def test_a_pivot_alone_changes_nothing():
    alone = {"en": translations("en", "ab")}
    assert code_switch(nli, alone, "pivot=en", 0.5, 0) == alone["en"]
    with pytest.raises(UserError, match=r"^config.data.code_switch=uniform: give translations"):
        code_switch(nli, alone, "uniform", 0.5, 0)


def test_rows_that_a_language_lacks_are_counted(caplog):
    parallel = {"en": translations("en", "abcd"), "de": translations("de", "bc")}
    with caplog.at_level("WARNING"):
        assert len(code_switch(nli, parallel, "uniform", 0.5, 0)) == 2 * 2
    assert caplog.text.count("2 of 4 rows are in all languages") == 1


def test_code_switching_by_row_where_ids_do_not_match():
    parallel = {"en": translations("en", ["a", "b"]), "de": translations("de", ["1", "2"])}
    assert code_switch(nli, parallel, "de=1,en=0", 0.5, 0) == parallel["de"] * 2


@pytest.mark.parametrize(
    ("de", "spec", "message"),
    [
        ({"ids": ["x"]}, "uniform", r"code-switching: neither ids nor the number of rows agree \(en 2, de 1\)"),
        ({"ids": ["a", "b"], "label": "entailment"}, "uniform", "labels of a row differ .* id [ab]: entailment"),
        ({"ids": ["a", "b"]}, "en=0.5,de=0.4", "config.data.code_switch=en=0.5,de=0.4: .* sum to 1"),
        ({"ids": ["a", "b"]}, "en=1.5,de=-0.5", "0 or more"),
        ({"ids": ["a", "b"]}, "en=nan,de=0.5", "0 or more"),
        ({"ids": ["a", "b"]}, "en,de", "give pivot=en, uniform, or en=0.5,de=0.5"),
        ({"ids": ["a", "b"]}, "en=0.5,de=0,fr=0.5", "fr: must name the languages of config.data.train, en, de"),
        ({"ids": ["a", "b"]}, "en=1", "de: must name the languages of config.data.train, en, de"),
        ({"ids": ["a", "b"]}, "pivot=fr", "fr: must name the languages of config.data.train, en, de"),
    ],
)
def test_code_switching_mistakes(de, spec, message):
    parallel = {"en": translations("en", ["a", "b"]), "de": translations("de", **de)}
    with pytest.raises(UserError, match=message):
        code_switch(nli, parallel, spec, 1, 0)


def test_a_question_about_a_context_in_another_language():
    def example(language):
        answer = squad.Answer(f"answer in {language}", 0)
        return squad.Example("1", f"asked in {language}", f"answer in {language}", (answer,), language, language)

    parallel = {"en": [example("en")] * 1, "de": [example("de")]}
    seen = set()
    for found in [x for seed in range(20) for x in code_switch(qa, parallel, "uniform", 0.5, seed)]:
        assert found.context == found.answers[0].text == f"answer in {found.language}"
        assert found.question == f"asked in {found.question_language}"
        seen.add((found.language, found.question_language))
    assert seen == {("en", "en"), ("en", "de"), ("de", "en"), ("de", "de")}


def test_questions_of_different_ids_are_never_mixed():
    def example(language, id):
        return squad.Example(id, "x", "y", (), language, language)

    parallel = {"en": [example("en", "1"), example("en", "2")], "de": [example("de", "3"), example("de", "4")]}
    with pytest.raises(UserError, match=r"questions . \(..\) and . \(..\) are in one row"):
        for seed in range(20):
            code_switch(qa, parallel, "uniform", 0.5, seed)
