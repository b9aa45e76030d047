"""Questions of the built-in sample: one right answer, where it is said to be, that only the question tells."""

import re
from collections import Counter

import pytest

from ppa_jax.data import world
from ppa_jax.data.world import Meaning, questions
from ppa_jax.data.world.lexicon import ACTIONS

ALL = 2400


@pytest.fixture(scope="module")
def asked() -> list[questions.Asked]:
    return [questions.asked(index) for index in range(ALL)]


@pytest.fixture(scope="module")
def found() -> list[dict[str, world.Question]]:
    return [world.question(index) for index in range(ALL)]


def test_the_answer_stands_at_its_offset_and_nowhere_else(found):
    for languages in found:
        assert languages.keys() == set(world.LANGUAGES)
        for said in languages.values():
            assert said.answer and said.context[said.start : said.start + len(said.answer)] == said.answer
            assert said.context.lower().count(said.answer.lower()) == 1


def test_the_answer_is_whole_words(found):
    for languages in found:
        for language in ("en", "de", "es", "ru"):
            said = languages[language]
            words = re.findall(r"\w+", said.context)
            inside = re.findall(r"\w+", said.answer)
            assert any(words[i : i + len(inside)] == inside for i in range(len(words)))


def parts(event: Meaning) -> dict[str, object]:
    return {"agent": event.agent.noun, "object": event.object and event.object.noun, "place": event.place,
            "time": event.time}  # fmt: skip


def test_exactly_one_sentence_answers(asked):
    for context, target, kind, told in asked:
        assert 2 <= len(context) <= 4 and kind not in told
        wanted = parts(context[target])
        match = [
            event
            for event in context
            if event.action == context[target].action and all(parts(event)[part] == wanted[part] for part in told)
        ]
        assert match == [context[target]]
        # every sentence has a candidate of the kind that is asked for, and no two the same
        assert len({parts(event)[kind] for event in context}) == len(context)


def test_four_in_a_row_ask_for_four_things_of_one_context(found):
    for first in range(0, ALL, 4):
        for language in world.LANGUAGES:
            four = [languages[language] for languages in found[first : first + 4]]
            assert len({said.context for said in four}) == 1
            assert len({said.question for said in four}) == 4
            assert len({said.start for said in four}) == 4
    assert len({languages["en"].context for languages in found}) == ALL // 4


def test_the_place_of_the_sentence_says_nothing(asked):
    for number in (2, 3, 4):
        for kinds in (("agent",), ("object",), ("place",), ("time",), questions.KINDS):
            targets = Counter(a.target for a in asked if len(a.events) == number and a.kind in kinds)
            expected = targets.total() / number
            for position in range(number):  # within four standard deviations
                assert abs(targets[position] - expected) < 4 * (expected * (1 - 1 / number)) ** 0.5
    kinds = Counter(a.kind for a in asked)
    assert min(kinds.values()) > 0.15 * ALL


def test_questions_are_put_as_each_language_puts_them(asked, found):
    verbs = {"did", "does", "will"}
    for (context, target, kind, _), languages in zip(asked, found, strict=True):
        tense = context[target].tense
        en, de, es, ru, zh = (languages[language].question for language in world.LANGUAGES)
        assert all(question.endswith("?") for question in (en, de, es, ru)) and zh.endswith("？")
        if kind != "agent":
            assert en.split()[1] in verbs and (en.split()[1] == "will") == (tense == "future")
        elif tense != "future":
            assert not verbs & set(en.split())
        assert de.split()[0] == {"agent": "Wer", "object": "Was", "place": "Wo", "time": "Wann"}[kind]
        assert (de.split()[1] == "wird") == (tense == "future")  # the finite verb is second
        assert es.startswith({"agent": "¿Quién ", "object": "¿Qué ", "place": "¿Dónde ", "time": "¿Cuándo "}[kind])
        assert ru.split()[0] == {"agent": "Кто", "object": "Что", "place": "Где", "time": "Когда"}[kind]
        if kind == "agent" and tense == "past":  # кто is masculine, whoever it was
            assert ACTIONS[context[target].action or ""].ru.past_m in re.findall(r"\w+", ru)
        if kind == "agent":
            assert zh.startswith("谁")
        else:  # it stays where it stands in the statement
            assert {"object": "什么？", "place": "在哪里", "time": "什么时候"}[kind] in zh and zh[0] not in "什在"


HAND = [
    (
        8,
        "Helen will lose two small keys in the park next week. "
        "Next week John will see five black newspapers in the castle.",
        [
            ("Where will Helen lose two small keys next week?", "in the park"),
            ("Wo wird Helene nächste Woche zwei kleine Schlüssel verlieren?", "im Park"),
            ("¿Dónde va a perder Elena dos llaves pequeñas la próxima semana?", "en el parque"),
            ("Где Елена на следующей неделе потеряет два маленьких ключа?", "в парке"),
            ("海伦下周会在哪里弄丢两把小钥匙？", "在公园里"),
        ],
    ),
    (
        9,
        "Helen will lose two small keys in the park next week. "
        "Next week John will see five black newspapers in the castle.",
        [
            ("What will Helen lose in the park next week?", "two small keys"),
            ("Was wird Helene nächste Woche im Park verlieren?", "zwei kleine Schlüssel"),
            ("¿Qué va a perder Elena en el parque la próxima semana?", "dos llaves pequeñas"),
            ("Что Елена на следующей неделе потеряет в парке?", "два маленьких ключа"),
            ("海伦下周会在公园里弄丢什么？", "两把小钥匙"),
        ],
    ),
    (
        10,
        "Helen will lose two small keys in the park next week. "
        "Next week John will see five black newspapers in the castle.",
        [
            ("Who will lose two small keys in the park next week?", "Helen"),
            ("Wer wird nächste Woche im Park zwei kleine Schlüssel verlieren?", "Helene"),
            ("¿Quién va a perder dos llaves pequeñas en el parque la próxima semana?", "Elena"),
            ("Кто на следующей неделе потеряет два маленьких ключа в парке?", "Елена"),
            ("谁下周会在公园里弄丢两把小钥匙？", "海伦"),
        ],
    ),
    (
        13,
        "Last summer the mother drank cold milk in the theater. "
        "Every summer the nurse writes this blue book at the market.",
        [
            ("What did the mother drink in the theater?", "cold milk"),
            ("Was trank die Mutter im Theater?", "kalte Milch"),
            ("¿Qué bebió la madre en el teatro?", "leche fría"),
            ("Что мать пила в театре?", "холодное молоко"),
            ("母亲在剧院里喝了什么？", "冷牛奶"),
        ],
    ),
    (
        14,
        "Last summer the mother drank cold milk in the theater. "
        "Every summer the nurse writes this blue book at the market.",
        [
            ("Where does the nurse write this blue book every summer?", "at the market"),
            ("Wo schreibt die Krankenschwester jeden Sommer dieses blaue Buch?", "auf dem Markt"),
            ("¿Dónde escribe la enfermera este libro azul cada verano?", "en el mercado"),
            ("Где медсестра каждое лето пишет эту синюю книгу?", "на рынке"),
            ("护士每年夏天在哪里写这本蓝色的书？", "在市场里"),
        ],
    ),
    (
        1032,
        "Every week the grandmother looks for two small pictures in the castle. "
        "The student will lose two big phones in the castle tomorrow.",
        [
            ("Who will lose two big phones in the castle tomorrow?", "The student"),
            ("Wer wird morgen im Schloss zwei große Telefone verlieren?", "Der Student"),
            ("¿Quién va a perder dos teléfonos grandes en el castillo mañana?", "El estudiante"),
            ("Кто завтра потеряет два больших телефона в замке?", "Студент"),
            ("谁明天会在城堡里弄丢两部大电话？", "学生"),
        ],
    ),
    (
        1044,
        "Every evening the nurse finds five new letters in the village. "
        "Every evening the farmer writes this white book in the hospital. "
        "Every evening Catherine opens a new door in the garden. "
        "The man sees this beautiful car in the restaurant every evening.",
        [
            ("What does Catherine open every evening?", "a new door"),
            ("Was macht Katharina jeden Abend auf?", "eine neue Tür"),
            ("¿Qué abre Catalina cada tarde?", "una puerta nueva"),
            ("Что Екатерина каждый вечер открывает?", "новую дверь"),
            ("凯瑟琳每天晚上打开什么？", "一扇新门"),
        ],
    ),
]


@pytest.mark.parametrize("index, context, expected", HAND, ids=lambda value: str(value)[:30])
def test_questions_by_hand(index, context, expected):
    found = world.question(index)
    assert found["en"].context == context
    assert [(said.question, said.answer) for said in found.values()] == expected


def test_bounds():
    assert world.question(world.question_size() - 1)["en"].answer
    for index in (-1, world.question_size()):
        with pytest.raises(IndexError):
            world.question(index)
