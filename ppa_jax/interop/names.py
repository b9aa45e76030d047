"""What transformers calls the parts of each family of encoders: the fields of config.json and the tensors.

A family is one entry of FAMILIES; reading and writing both go by it. PyTorch stores dense weights as [out, in], Flax as
[in, out]: a path that ends in "kernel" is transposed on the way.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ppa_jax.errors import UserError
from ppa_jax.model.bert import Encoder, EncoderConfig
from ppa_jax.model.heads import MaskedLMHead

TreePath = tuple[str, ...]
Modules = Mapping[str, tuple[str, Mapping[str, str]]]  # module of transformers -> (path in the tree, {leaf: leaf})

TABLE = {"weight": "embedding"}
DENSE = {"weight": "kernel", "bias": "bias"}
NORM = {"weight": "scale", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of encoders, as transformers saves it.

    Attributes:
        model_type: EncoderConfig.model_type.
        classes: the common part of its classes: "Bert" of BertModel and BertForMaskedLM.
        sizes: field of config.json -> field of EncoderConfig; positive whole numbers.
        constants: likewise; numbers from 0, and where one is missing EncoderConfig's default.
        defaults: values of fields that config.json may lack.
        supported: field -> (the values that are supported, what a message says of them); a missing field is supported.
        positions_after_pad: positions are numbered from pad_token_id + 1, not from 0.
        prefix: of the encoder's tensors in a model with a head; the encoder alone is saved without it.
        embeddings: the encoder's modules outside of its layers, without the prefix.
        layers: where the layers are, with {} for the number.
        layer: the modules of one layer.
        head: the modules of the masked-LM head.
        copies: tensor -> the tensor it repeats; transformers ties the two when it loads a model.
        buffers: tensors that transformers computes, without the prefix.
    """

    model_type: str
    classes: str
    sizes: Mapping[str, str]
    constants: Mapping[str, str]
    defaults: Mapping[str, Any]
    supported: Mapping[str, tuple[tuple[Any, ...], str]]
    positions_after_pad: bool
    prefix: str
    embeddings: Modules
    layers: str
    layer: Modules
    head: Modules
    copies: Mapping[str, str]
    buffers: tuple[str, ...]


BERT = Family(
    model_type="bert",
    classes="Bert",
    sizes={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "max_positions",
        "type_vocab_size": "type_vocab_size",
    },
    constants={
        "layer_norm_eps": "layer_norm_eps",
        "hidden_dropout_prob": "hidden_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "initializer_range": "initializer_range",
    },
    defaults={"type_vocab_size": 2, "pad_token_id": 0},
    supported={
        "hidden_act": (("gelu", "gelu_python"), "only the exact 'gelu' is"),
        "position_embedding_type": (("absolute",), "only 'absolute' is"),
        "is_decoder": ((False,), "only encoders are"),
        "add_cross_attention": ((False,), "only encoders are"),
        "quantization_config": (({},), "only plain float weights are"),
    },
    positions_after_pad=False,
    prefix="bert.",
    embeddings={
        "embeddings.word_embeddings": ("embeddings/word_embeddings", TABLE),
        "embeddings.position_embeddings": ("embeddings/position_embeddings", TABLE),
        "embeddings.token_type_embeddings": ("embeddings/token_type_embeddings", TABLE),
        "embeddings.LayerNorm": ("embeddings/layer_norm", NORM),
    },
    layers="encoder.layer.{}.",
    layer={
        "attention.self.query": ("attention/query", DENSE),
        "attention.self.key": ("attention/key", DENSE),
        "attention.self.value": ("attention/value", DENSE),
        "attention.output.dense": ("attention/output", DENSE),
        "attention.output.LayerNorm": ("attention/layer_norm", NORM),
        "intermediate.dense": ("feed_forward/intermediate", DENSE),
        "output.dense": ("feed_forward/output", DENSE),
        "output.LayerNorm": ("feed_forward/layer_norm", NORM),
    },
    head={
        "cls.predictions.transform.dense": ("transform", DENSE),
        "cls.predictions.transform.LayerNorm": ("layer_norm", NORM),
        "cls.predictions": ("", {"bias": "bias"}),
    },
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    buffers=("embeddings.position_ids", "embeddings.token_type_ids"),
)
XLM_ROBERTA = dataclasses.replace(
    BERT,
    model_type="xlm-roberta",
    classes="XLMRoberta",
    defaults={"type_vocab_size": 2, "pad_token_id": 1},
    positions_after_pad=True,
    prefix="roberta.",
    head={
        "lm_head.dense": ("transform", DENSE),
        "lm_head.layer_norm": ("layer_norm", NORM),
        "lm_head": ("", {"bias": "bias"}),
    },
    copies={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
)
FAMILIES = {  # by the model_type of config.json
    "bert": BERT,
    "xlm-roberta": XLM_ROBERTA,
    "roberta": dataclasses.replace(XLM_ROBERTA, classes="Roberta"),  # the same model under another name
}


def config_from_hf(values: Mapping[str, Any], where: str = "config.json") -> EncoderConfig:
    """EncoderConfig from the fields of config.json; `where` is the file's name for messages.

    Raises UserError for another kind of model, or for an option that would change the numbers and is not supported.
    """
    kind = values.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"{where}: model_type {kind!r} is not supported; supported: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    values = {**family.defaults, **{name: value for name, value in values.items() if value is not None}}
    for name, (supported, instead) in family.supported.items():
        if name in values and values[name] not in supported:
            raise UserError(f"{where}: {name}={values[name]!r} is not supported; {instead}")
    fields: dict[str, Any] = {}
    for name, ours in family.sizes.items():
        size = values.get(name)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            problem = "is missing" if size is None else f"is {size!r}, not a positive whole number"
            raise UserError(f"{where}: {name} {problem}; restore the config.json that the model was saved with")
        fields[ours] = size
    if fields["hidden_size"] % fields["num_heads"]:
        raise UserError(
            f"{where}: hidden_size={fields['hidden_size']} is not divisible by "
            f"num_attention_heads={fields['num_heads']}; one of them is wrong"
        )
    for name, ours in family.constants.items():
        constant = values.get(name, getattr(EncoderConfig, ours))
        if not isinstance(constant, int | float) or isinstance(constant, bool) or constant < 0:
            raise UserError(f"{where}: {name} is {constant!r}, not a number from 0")
        fields[ours] = float(constant)
    pad = values["pad_token_id"]
    if not isinstance(pad, int) or not 0 <= pad < fields["vocab_size"]:
        raise UserError(f"{where}: pad_token_id={pad!r} is outside the vocabulary of {fields['vocab_size']}")
    offset = pad + 1 if family.positions_after_pad else 0
    return EncoderConfig(model_type=family.model_type, pad_token_id=pad, position_offset=offset, **fields)


def config_to_hf(config: EncoderConfig, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of config.json for `config`; other fields of `base` (a config.json as read) are left as they are."""
    values = dict(base or {})
    model_type = values.get("model_type")
    if model_type not in FAMILIES or FAMILIES[model_type].model_type != config.model_type:
        values["model_type"] = config.model_type
    family = FAMILIES[values["model_type"]]
    values |= {name: getattr(config, ours) for name, ours in {**family.sizes, **family.constants}.items()}
    values |= {"hidden_act": "gelu", "pad_token_id": config.pad_token_id, "tie_word_embeddings": True}
    values["architectures"] = [f"{family.classes}ForMaskedLM"]
    values.pop("torch_dtype", None)  # the older name of the next
    values["dtype"] = "float32"
    return values


def tensor_names(config: EncoderConfig) -> dict[str, TreePath]:
    """Each tensor of transformers -> its path in the Flax tree: "encoder", "mlm_head" and "pooler"."""
    family = FAMILIES[config.model_type]
    modules: dict[str, tuple[str, Mapping[str, str]]] = {}
    for module, (path, leaves) in family.embeddings.items():
        modules[family.prefix + module] = f"encoder/{path}", leaves
    for i in range(config.num_layers):
        for module, (path, leaves) in family.layer.items():
            modules[family.prefix + family.layers.format(i) + module] = f"encoder/layer_{i}/{path}", leaves
    for module, (path, leaves) in family.head.items():
        modules[module] = f"mlm_head/{path}", leaves
    modules[f"{family.prefix}pooler.dense"] = "pooler", DENSE
    return {
        f"{module}.{theirs}": (*filter(None, path.split("/")), ours)
        for module, (path, leaves) in modules.items()
        for theirs, ours in leaves.items()
    }


@functools.cache
def tree_shapes(config: EncoderConfig) -> Mapping[TreePath, tuple[int, ...]]:
    """The shape of every Flax parameter that `tensor_names` lists, from the model itself; nothing is computed."""
    D = config.hidden_size

    def init(ids: jax.Array, hidden_1xD: jax.Array) -> Any:
        key = jax.random.key(0)
        encoder = Encoder(config).init(key, ids, ids, ids)["params"]
        return {"encoder": encoder, "mlm_head": MaskedLMHead(config).init(key, hidden_1xD)["params"]}

    tree = jax.eval_shape(init, jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1, D), jnp.float32))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    shapes = {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}
    return shapes | {("pooler", "kernel"): (D, D), ("pooler", "bias"): (D,)}


def torch_shape(path: TreePath, config: EncoderConfig) -> tuple[int, ...]:
    """The shape of the parameter at `path` in PyTorch."""
    shape = tree_shapes(config)[path]
    return shape[::-1] if path[-1] == "kernel" else shape
