import pickle

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, XLMRobertaTokenizer

from ppa_jax.data.tokenizer import check_vocabulary, load_tokenizer
from ppa_jax.errors import UserError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [*SPECIAL, "the", "cat", "##s", "[", "]", "MASK"]


@pytest.fixture
def directory(tmp_path):
    """A Hugging Face directory with a vocabulary of eleven word pieces."""
    backend = Backend(WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    backend.normalizer = BertNormalizer(lowercase=False)
    backend.pre_tokenizer = BertPreTokenizer()
    backend.enable_truncation(3)
    names = dict(zip(["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"], SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(tmp_path)
    return tmp_path


def test_pieces_without_special_tokens_or_truncation(directory):
    tokenizer = load_tokenizer(directory)
    assert tokenizer.encode(["the cats", "", "dog", "the the the the"]) == [[5, 6, 7], [], [1], [5, 5, 5, 5]]
    assert tokenizer.count(["the cats", "", "dog", "the the the the"]) == [3, 0, 1, 4]
    ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
    assert ids == (0, 1, 2, 3, 4) and tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert tokenizer.vocab_size == 11


def test_text_cannot_forge_special_tokens(directory):
    assert load_tokenizer(directory).encode(["the [MASK]"]) == [[5, 8, 10, 9]]


def test_fingerprint_follows_the_vocabulary(directory):
    first = load_tokenizer(directory)
    assert load_tokenizer(directory).fingerprint == first.fingerprint
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace('"cat"', '"dog"'))
    assert load_tokenizer(directory).fingerprint != first.fingerprint


def test_pickled_copy_encodes_alike(directory):
    tokenizer = load_tokenizer(directory)
    assert pickle.loads(pickle.dumps(tokenizer)).encode(["the [MASK]"]) == tokenizer.encode(["the [MASK]"])


def test_files_of_an_export_load_again(directory, tmp_path_factory):
    tokenizer = load_tokenizer(directory)
    copy = tmp_path_factory.mktemp("copy")
    for path in tokenizer.files:
        (copy / path.name).write_bytes(path.read_bytes())
    assert load_tokenizer(copy).fingerprint == tokenizer.fingerprint


def test_directory_without_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')  # transformers makes a tokenizer of nothing from it
    with pytest.raises(UserError, match=r"no tokenizer here \(looked for tokenizer.json"):
        load_tokenizer(tmp_path)


def test_damaged_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(UserError, match="cannot be read") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lost", ["[MASK]", "[CLS]"])
def test_missing_special_token(tmp_path, lost):
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES if piece != lost))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(UserError, match=rf"no special token for {lost.strip('[]').lower()} \(\{lost}"):
        load_tokenizer(tmp_path)


def test_the_tokens_around_a_text_are_cls_and_sep_where_no_others_are_named(tmp_path):
    """Gemma's tokenizer, which mmBERT has, knows <bos> and <eos>; its numbers are its own."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "cat"]
    backend = Backend(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    backend.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)])
    names = {f"{role}_token": f"<{role}>" for role in ("pad", "eos", "bos", "unk", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path)
    assert (found.cls_id, found.sep_id, found.mask_id, found.pad_id, found.unk_id) == (2, 1, 4, 0, 3)
    assert found.special_ids == (0, 1, 2, 3, 4) and found.encode(["cat"]) == [[5]]


def test_no_such_place(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file, not a Hugging Face directory"):
        load_tokenizer(tmp_path / "file")


def test_check_vocabulary(directory):
    tokenizer = load_tokenizer(directory)
    check_vocabulary(tokenizer, 11)
    check_vocabulary(tokenizer, 64)  # rows padded to a round size
    with pytest.raises(UserError, match="ids up to 10 but the model has only 10 embeddings"):
        check_vocabulary(tokenizer, 10)


@pytest.mark.shared_data
@pytest.mark.parametrize("place", ["models/minimbert", "data/mbert_tokenizer"])
def test_same_pieces_as_transformers(shared, place):
    texts = (shared / "data/ntrex/zho-CN.txt", shared / "data/ntrex/rus.txt", shared / "data/ntrex/eng.txt")
    sentences = [line for path in texts if path.is_file() for line in path.read_text("utf-8").split("\n")[:200]]
    tokenizer = load_tokenizer(shared / place)
    reference = BertTokenizer.from_pretrained(shared / place)
    expected = reference(sentences, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode(sentences) == expected
    assert len(sentences) > 200
    assert (tokenizer.cls_id, tokenizer.sep_id) == (reference.cls_token_id, reference.sep_token_id)


HARD = {
    "empty": "",
    "whitespace": " \t\u2028\u00a0",
    "emoji": "ab 🙂👩‍👩‍👧🏳️‍🌈",
    "right to left": "שלום a مرحبا‏ b",
    "combining marks": "e\u0301 \u0e2a\u0e33 n\u0303",
    "NFKC": "ﬁ ① ㍿ ｱﾊﾟ ½ ﷺ",
    "control characters": "a\x00b\x07c\u200bd\u00ade\ufeff",
    "one long word": "abc" * 2000,
    "spaces": "  a  b ",
    "another model's special tokens": "[CLS] a [MASK]",
    "the piece of a space": "▁ ▁▁a",
    "beyond the first plane": "\ue000\U0010ffff𐍈",
}


@pytest.fixture(scope="module")
def xlm_roberta(tmp_path_factory):
    """A directory with XLM-R's class of tokenizer, as multilingual E5 has it. Half of the letters are unknown."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted(set("".join(HARD.values())) - set(" ▁"))[::2]
    pieces = [*special, "▁", "ab", "▁ab", "abc", *letters, "<mask>"]
    vocabulary = [(piece, 0.0 if piece[0] == "<" else -float(1 + i)) for i, piece in enumerate(pieces)]
    directory = tmp_path_factory.mktemp("xlm-roberta")
    XLMRobertaTokenizer(vocab=vocabulary).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("text", HARD.values(), ids=HARD)
def test_hard_texts_give_the_ids_of_transformers(xlm_roberta, text):
    ours = load_tokenizer(xlm_roberta)
    found = [ours.cls_id, *ours.encode([text])[0], ours.sep_id]
    assert found == AutoTokenizer.from_pretrained(xlm_roberta)(text)["input_ids"]


def test_pieces_that_are_special_tokens_are_found_as_transformers_finds_them_in_text(xlm_roberta):
    """XLM-R's vocabulary has them among its pieces: they are not split further."""
    text = "<s> ab</s> <mask> <pad>"
    theirs = AutoTokenizer.from_pretrained(xlm_roberta)
    wanted = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert load_tokenizer(xlm_roberta).encode([text]) == [wanted]
    assert wanted != theirs(text, add_special_tokens=False)["input_ids"], "by default a mask takes the space before it"
