"""The one table of names: each tensor of transformers' BERT and XLM-R and where it stands in the Flax tree.

PyTorch keeps dense weights as [out, in], Flax as [in, out]: a path that ends in "kernel" is transposed on the way.
"""

from __future__ import annotations

from ppa_jax.model.bert import EncoderConfig

TreePath = tuple[str, ...]

ARCHITECTURES = {  # model_type -> prefix of the encoder's tensors, class of the encoder, class with the head
    "bert": ("bert.", "BertModel", "BertForMaskedLM"),
    "xlm-roberta": ("roberta.", "XLMRobertaModel", "XLMRobertaForMaskedLM"),
    "roberta": ("roberta.", "RobertaModel", "RobertaForMaskedLM"),
}
_DENSE = {"weight": "kernel", "bias": "bias"}
_NORM = {"weight": "scale", "bias": "bias"}
_EMBEDDINGS: dict[str, tuple[str, dict[str, str]]] = {
    "embeddings.word_embeddings": ("embeddings/word_embeddings", {"weight": "embedding"}),
    "embeddings.position_embeddings": ("embeddings/position_embeddings", {"weight": "embedding"}),
    "embeddings.token_type_embeddings": ("embeddings/token_type_embeddings", {"weight": "embedding"}),
    "embeddings.LayerNorm": ("embeddings/layer_norm", _NORM),
}
_LAYER: dict[str, tuple[str, dict[str, str]]] = {
    "attention.self.query": ("attention/query", _DENSE),
    "attention.self.key": ("attention/key", _DENSE),
    "attention.self.value": ("attention/value", _DENSE),
    "attention.output.dense": ("attention/output", _DENSE),
    "attention.output.LayerNorm": ("attention/layer_norm", _NORM),
    "intermediate.dense": ("feed_forward/intermediate", _DENSE),
    "output.dense": ("feed_forward/output", _DENSE),
    "output.LayerNorm": ("feed_forward/layer_norm", _NORM),
}
_HEAD: dict[str, dict[str, tuple[str, dict[str, str]]]] = {
    "bert": {
        "cls.predictions.transform.dense": ("transform", _DENSE),
        "cls.predictions.transform.LayerNorm": ("layer_norm", _NORM),
        "cls.predictions": ("", {"bias": "bias"}),
    },
    "xlm-roberta": {
        "lm_head.dense": ("transform", _DENSE),
        "lm_head.layer_norm": ("layer_norm", _NORM),
        "lm_head": ("", {"bias": "bias"}),
    },
}


def tensor_names(config: EncoderConfig) -> dict[str, TreePath]:
    """The table of names: each tensor of transformers -> its path in the Flax tree (encoder, head, pooler)."""
    prefix = ARCHITECTURES[config.model_type][0]
    rows: list[tuple[str, str, dict[str, str]]] = []
    for module, (path, leaves) in _EMBEDDINGS.items():
        rows.append((prefix + module, f"encoder/{path}", leaves))
    for i in range(config.num_layers):
        for module, (path, leaves) in _LAYER.items():
            rows.append((f"{prefix}encoder.layer.{i}.{module}", f"encoder/layer_{i}/{path}", leaves))
    for module, (path, leaves) in _HEAD[config.model_type].items():
        rows.append((module, f"mlm_head/{path}", leaves))
    rows.append((f"{prefix}pooler.dense", "pooler", _DENSE))
    return {
        f"{module}.{torch_leaf}": (*(p for p in path.split("/") if p), flax_leaf)
        for module, path, leaves in rows
        for torch_leaf, flax_leaf in leaves.items()
    }


def tree_shape(path: TreePath, c: EncoderConfig) -> tuple[int, ...]:
    """The shape of a Flax parameter."""
    D, F = c.hidden_size, c.intermediate_size
    if path[-1] == "embedding":
        rows = {
            "word_embeddings": c.vocab_size,
            "position_embeddings": c.max_positions,
            "token_type_embeddings": c.type_vocab_size,
        }
        return (rows[path[-2]], D)
    if path == ("mlm_head", "bias"):
        return (c.vocab_size,)
    into, out = {"intermediate": (D, F), "output": (F, D)}.get(path[-2], (D, D)) if "feed_forward" in path else (D, D)
    return (into, out) if path[-1] == "kernel" else (out,)


def torch_shape(path: TreePath, config: EncoderConfig) -> tuple[int, ...]:
    """The shape of the same tensor in PyTorch."""
    shape = tree_shape(path, config)
    return shape[::-1] if path[-1] == "kernel" else shape
