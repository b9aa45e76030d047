"""Dependency trees of the built-in sample: trees at all, by the rules of Universal Dependencies, and right by hand."""

import pytest

from ppa_jax.data import world
from ppa_jax.data.world import Meaning, Phrase, trees

SAMPLE = range(0, world.size(), 641)  # about a thousand sentences from everywhere
# What may depend on what: the parts of speech of the dependent and of its head. From the guidelines, not from the code.
NOMINAL = {"NOUN", "PROPN"}
PREDICATE = {"VERB", "ADJ", "NOUN"}  # a NOUN where something is in a place
RULES = {
    "root": (PREDICATE, {"ROOT"}),
    "nsubj": (NOMINAL, PREDICATE),
    "obj": (NOMINAL, {"VERB"}),
    "iobj": (NOMINAL, {"VERB"}),
    "obl": (NOMINAL, PREDICATE),
    "advmod": ({"ADV", "PART"}, {"VERB", "ADJ", "ADV", "NOUN"}),
    "xcomp": ({"VERB"}, {"VERB"}),
    "advcl": ({"VERB", *NOMINAL}, {"VERB", "ADJ"}),
    "conj": ({"VERB", *NOMINAL}, {"VERB", *NOMINAL}),
    "cc": ({"CCONJ"}, {"VERB", *NOMINAL}),
    "mark": ({"PART", "SCONJ", "ADP", "ADV"}, {"VERB", "ADJ", "ADV", *NOMINAL}),
    "aux": ({"AUX"}, PREDICATE),
    "cop": ({"AUX"}, {"ADJ", "NOUN"}),
    "det": ({"DET"}, NOMINAL),  # a PROPN in `every Sunday`
    "amod": ({"ADJ"}, {"NOUN"}),
    "nummod": ({"NUM"}, {"NOUN"}),
    "clf": ({"NOUN"}, {"NUM", "DET"}),
    "nmod": ({"NOUN", "PRON"}, {"NOUN"}),
    "nmod:poss": ({"PRON"}, {"NOUN"}),
    "case": ({"ADP", "PART", "ADV"}, {"PRON", *NOMINAL}),
    "fixed": ({"ADP", "SCONJ"}, {"ADV"}),
    "compound:prt": ({"ADP"}, {"VERB"}),
    "expl": ({"PRON"}, {"VERB"}),
    "punct": ({"PUNCT"}, {*PREDICATE, "PROPN"}),
}
LEAVES = {"det", "case", "cop", "aux", "punct", "expl", "clf", "cc", "mark", "compound:prt"}


@pytest.fixture(scope="module")
def sample() -> list[tuple[Meaning, dict[str, trees.Tree]]]:
    return [(world.meaning(index), world.tree(index)) for index in SAMPLE]


def ancestors(tree: trees.Tree, position: int) -> list[int]:
    """The heads above a word, up to the root; raises where they go round in a circle."""
    found = []
    while position:
        position = tree.heads[position - 1]
        assert position not in found, tree
        found.append(position)
    return found


def test_one_root_no_circle_nothing_crosses(sample):
    for _, languages in sample:
        for tree in languages.values():
            assert len(tree.words) == len(tree.tags) == len(tree.heads) == len(tree.relations)
            assert tree.heads.count(0) == 1 and tree.relations[tree.heads.index(0)] == "root"
            for position, head in enumerate(tree.heads, 1):
                assert ancestors(tree, position)[-1] == 0
                if head:  # projective: all that stands between a word and its head is below the head
                    first, last = sorted((position, head))
                    assert all(head in ancestors(tree, between) for between in range(first + 1, last)), tree


def test_relations_agree_with_the_parts_of_speech(sample):
    met = set()
    for _, languages in sample:
        for language, tree in languages.items():
            for position, (head, relation) in enumerate(zip(tree.heads, tree.relations, strict=True)):
                dependents, heads = RULES[relation]
                assert tree.tags[position] in dependents, (language, relation, tree)
                assert (tree.tags[head - 1] if head else "ROOT") in heads, (language, relation, tree)
                met.add(relation)
    assert met == RULES.keys()


def test_function_words_carry_nothing(sample):
    """But for what makes one word of several: debajo de, потому что, 我的, 每天, 快得多."""
    for _, languages in sample:
        for language, tree in languages.items():
            for head, relation in zip(tree.heads, tree.relations, strict=True):
                if head and tree.relations[head - 1] in LEAVES:
                    assert relation == "fixed" or (language, relation) == ("zh", "clf"), tree


def test_a_verb_has_at_most_one_of_its_arguments(sample):
    for meaning, languages in sample:
        for tree in languages.values():
            for relation in ("nsubj", "obj", "iobj", "cop"):
                heads = [head for head, found in zip(tree.heads, tree.relations, strict=True) if found == relation]
                assert len(heads) == len(set(heads)), tree
            # every clause has its subject; the root's has one in every pattern
            assert "nsubj" in [found for head, found in zip(tree.heads, tree.relations, strict=True)
                               if head and tree.heads[head - 1] == 0], (meaning, tree)  # fmt: skip


def test_trees_are_of_the_sentences_of_the_index():
    for language, tree in world.tree(123).items():
        assert (tree.words, tree.tags) == (world.sentence(123)[language].words, world.sentence(123)[language].tags)
    with pytest.raises(IndexError):
        world.tree(world.size())


HAND = [  # word:head:relation, annotated by a person
    (
        "en",
        Meaning(
            "act",
            Phrase("girl", second=Phrase("peter")),
            action="look_for",
            object=Phrase("umbrella", "a", "blue"),
            place="park",
            time="yesterday_evening",
        ),
        "The:2:det girl:5:nsubj and:4:cc Peter:2:conj looked:0:root for:5:compound:prt a:9:det "
        "blue:9:amod umbrella:5:obj in:12:case the:12:det park:5:obl yesterday:14:nmod evening:5:obl "
        ".:5:punct",
    ),
    (
        "en",
        Meaning("want", Phrase("andrew"), action="draw", object=Phrase("mouse", "five"), place="kitchen"),
        "Andrew:2:nsubj wants:0:root to:4:mark draw:2:xcomp five:6:nummod mice:4:obj in:9:case the:9:det "
        "kitchen:4:obl .:2:punct",
    ),
    (
        "en",
        Meaning(
            "join",
            Phrase("helen"),
            action="cry",
            link="because",
            other=Phrase("cat"),
            other_action="sleep",
            time="today",
            fronted=True,
        ),
        "Today:4:obl Helen:4:nsubj is:4:aux crying:0:root because:9:mark the:7:det cat:9:nsubj is:9:aux "
        "sleeping:4:advcl .:4:punct",
    ),
    (
        "en",
        Meaning("locate", Phrase("cup", "my", "white"), place="tree", relation="under", time="now"),
        "My:3:nmod:poss white:3:amod cup:7:nsubj is:7:cop under:7:case the:7:det tree:0:root now:7:advmod .:7:punct",
    ),
    (
        "en",
        Meaning(
            "like", Phrase("teacher"), action="like", object=Phrase("milk", "bare", "hot"), other=Phrase("wolf", "bare")
        ),
        "The:2:det teacher:3:nsubj likes:0:root hot:5:amod milk:3:obj but:8:cc not:8:advmod wolves:5:conj .:3:punct",
    ),
    (
        "de",
        Meaning(
            "move", Phrase("horse"), action="return", place="forest", time="last_summer", negated=True, fronted=True
        ),
        "Letzten:2:amod Sommer:3:obl kam:0:root das:5:det Pferd:3:nsubj nicht:3:advmod in:9:case "
        "den:9:det Wald:3:obl zurück:3:compound:prt .:3:punct",
    ),
    (
        "de",
        Meaning("want", Phrase("andrew"), action="draw", object=Phrase("mouse", "five"), place="kitchen"),
        "Andreas:8:nsubj will:8:aux in:5:case der:5:det Küche:8:obl fünf:7:nummod Mäuse:8:obj "
        "zeichnen:0:root .:8:punct",
    ),
    (
        "de",
        Meaning(
            "give",
            Phrase("doctor"),
            action="give",
            object=Phrase("orange", "a"),
            recipient=Phrase("woman"),
            time="every_sunday",
        ),
        "Der:2:det Arzt:3:nsubj gibt:0:root jeden:5:det Sonntag:3:obl der:7:det Frau:3:iobj eine:9:det "
        "Apfelsine:3:obj .:3:punct",
    ),
    (
        "de",
        Meaning("describe", Phrase("window", "our"), quality="clean", time="tomorrow", negated=True, fronted=True),
        "Morgen:6:advmod wird:6:aux unser:4:det Fenster:6:nsubj nicht:6:advmod sauber:0:root sein:6:cop .:6:punct",
    ),
    (
        "de",
        Meaning(
            "join",
            Phrase("helen"),
            action="cry",
            link="because",
            other=Phrase("cat"),
            other_action="sleep",
            time="yesterday_evening",
            fronted=True,
        ),
        "Gestern:2:advmod Abend:3:obl weinte:0:root Helene:3:nsubj ,:9:punct weil:9:mark die:8:det "
        "Katze:9:nsubj schlief:3:advcl .:3:punct",
    ),
    (
        "es",
        Meaning(
            "like", Phrase("teacher"), action="like", object=Phrase("milk", "bare", "hot"), other=Phrase("wolf", "bare")
        ),
        "Al:2:case maestro:4:iobj le:4:expl gusta:0:root la:6:det leche:4:nsubj caliente:6:amod "
        ",:12:punct pero:12:cc no:12:advmod los:12:det lobos:6:conj .:4:punct",
    ),
    (
        "es",
        Meaning(
            "give",
            Phrase("doctor"),
            action="give",
            object=Phrase("orange", "a"),
            recipient=Phrase("king"),
            time="tomorrow_evening",
        ),
        "El:2:det médico:6:nsubj le:6:expl va:6:aux a:6:mark dar:0:root una:8:det naranja:6:obj "
        "al:10:case rey:6:iobj mañana:14:advmod por:14:case la:14:det tarde:6:obl .:6:punct",
    ),
    (
        "es",
        Meaning("locate", Phrase("cup", "my", "white"), place="tree", relation="under", time="now"),
        "Mi:2:det taza:7:nsubj blanca:2:amod está:7:cop debajo:7:case del:5:fixed árbol:0:root "
        "ahora:7:advmod .:7:punct",
    ),
    (
        "es",
        Meaning("compare", Phrase("mary"), quality="fast", degree="much", other=Phrase("king")),
        "María:5:nsubj es:5:cop mucho:4:advmod más:5:advmod rápida:0:root que:8:mark el:8:det rey:5:advcl .:5:punct",
    ),
    (
        "es",
        Meaning("act", Phrase("boy"), action="invite", object=Phrase("student"), time="last_week", fronted=True),
        "La:2:det semana:6:obl pasada:2:amod el:5:det niño:6:nsubj invitó:0:root al:8:case estudiante:6:obj .:6:punct",
    ),
    (
        "ru",
        Meaning(
            "join",
            Phrase("helen"),
            action="cry",
            link="because",
            other=Phrase("cat"),
            other_action="sleep",
            time="yesterday_evening",
            fronted=True,
        ),
        "Вчера:2:advmod вечером:4:obl Елена:4:nsubj плакала:0:root ,:9:punct потому:9:mark что:6:fixed "
        "кошка:9:nsubj спала:4:advcl .:4:punct",
    ),
    (
        "ru",
        Meaning("locate", Phrase("cup", "my", "white"), place="tree", relation="under", time="now"),
        "Моя:3:det белая:3:amod чашка:6:nsubj сейчас:6:advmod под:6:case деревом:0:root .:6:punct",
    ),
    (
        "ru",
        Meaning("compare", Phrase("mary"), quality="fast", degree="much", other=Phrase("king")),
        "Мария:3:nsubj гораздо:3:advmod быстрее:0:root ,:6:punct чем:6:mark король:3:advcl .:3:punct",
    ),
    (
        "ru",
        Meaning(
            "act",
            Phrase("anna"),
            action="drink",
            object=Phrase("water", "bare", "cold"),
            place="park",
            time="next_week",
        ),
        "Анна:6:nsubj на:4:case следующей:4:amod неделе:6:obl будет:6:aux пить:0:root холодную:8:amod "
        "воду:6:obj в:10:case парке:6:obl .:6:punct",
    ),
    (
        "ru",
        Meaning(
            "give",
            Phrase("doctor"),
            action="give",
            object=Phrase("lamp", "two", "new"),
            recipient=Phrase("woman"),
            time="every_day",
        ),
        "Врач:4:nsubj каждый:3:det день:4:obl даёт:0:root женщине:4:iobj две:8:nummod новые:8:amod "
        "лампы:4:obj .:4:punct",
    ),
    (
        "zh",
        Meaning(
            "act",
            Phrase("anna"),
            action="read",
            object=Phrase("book", "two", "red"),
            place="park",
            time="every_morning",
        ),
        "安娜:8:nsubj 每:4:det 天:2:clf 早上:8:obl 在:6:case 公园:8:obl 里:6:case 读:0:root 两:13:nummod 本:9:clf "
        "红色:13:amod 的:11:mark 书:8:obj 。:8:punct",
    ),
    (
        "zh",
        Meaning(
            "like", Phrase("teacher"), action="like", object=Phrase("milk", "bare", "hot"), other=Phrase("wolf", "bare")
        ),
        "老师:2:nsubj 喜欢:0:root 热:4:amod 牛奶:2:obj ，:8:punct 但是:8:cc "
        "不:8:advmod 喜欢:2:conj 狼:8:obj 。:2:punct",
    ),
    (
        "zh",
        Meaning("locate", Phrase("cup", "my", "white"), place="tree", relation="under", time="tomorrow", negated=True),
        "我:4:nmod 的:1:case 白色:4:amod 杯子:8:nsubj 明天:8:obl 不:8:advmod 会:8:aux 在:0:root 树:8:obj 下面:9:case "
        "。:8:punct",
    ),
    (
        "zh",
        Meaning("compare", Phrase("mary"), quality="fast", degree="much", other=Phrase("king")),
        "玛丽:4:nsubj 比:3:case 国王:4:obl 快:0:root 得:6:mark 多:4:advmod 。:4:punct",
    ),
    (
        "zh",
        Meaning(
            "move", Phrase("horse"), action="return", place="forest", time="last_summer", negated=True, fronted=True
        ),
        "去年:2:nmod 夏天:5:obl 马:5:nsubj 没有:5:advmod 回到:0:root 森林:5:obj 。:5:punct",
    ),
]


@pytest.mark.parametrize("language, meaning, expected", HAND, ids=lambda value: str(value)[:40])
def test_trees_by_hand(language, meaning, expected):
    tree = trees.tree(meaning, world.realise(meaning, language), language)
    found = zip(tree.words, tree.heads, tree.relations, strict=True)
    assert " ".join(f"{word}:{head}:{relation}" for word, head, relation in found) == expected
