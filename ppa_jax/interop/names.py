"""What transformers calls the parts of each family of encoders: the fields of config.json and the tensors.

A family is one entry of FAMILIES; reading and writing both go by it. PyTorch stores dense weights as [out, in], Flax as
[in, out]: a path that ends in "kernel" is transposed on the way.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ppa_jax.errors import UserError
from ppa_jax.model.families import FAMILIES as MODELS
from ppa_jax.model.families import EncoderConfig, make_encoder, make_masked_lm_head
from ppa_jax.model.modernbert import FULL, SLIDING

TreePath = tuple[str, ...]
Modules = Mapping[str, tuple[str, Mapping[str, str]]]  # module of transformers -> (path in the tree, {leaf: leaf})

TABLE = {"weight": "embedding"}
DENSE = {"weight": "kernel", "bias": "bias"}
NORM = {"weight": "scale", "bias": "bias"}
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_positions",
}
EXACT_GELU = (("gelu", "gelu_python"), "only the exact 'gelu' is")
PLAIN_WEIGHTS = (({},), "only plain float weights are")


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
        read: (the fields of config.json, the file's name for messages) -> further fields of EncoderConfig.
        write: EncoderConfig -> the fields of config.json that `sizes` and `constants` do not give.
        obsolete: fields of config.json that `write` replaces.
        unset: fields that a new config.json leaves empty, for which transformers would take another vocabulary's ids.
        prefix: of the encoder's tensors in a model with a head; the encoder alone is saved without it.
        embeddings: the encoder's modules outside of its layers, without the prefix.
        layers: where the layers are, with {} for the number.
        layer: the modules of one layer. Where the model has no such parameter, a bias say, there is no such tensor.
        head: the modules of the masked-LM head.
        pooler: the module of BERT's pooler, without the prefix.
        copies: tensor -> the tensor it repeats; transformers ties the two when it loads a model.
        buffers: tensors that transformers computes, without the prefix.
    """

    model_type: str
    classes: str
    sizes: Mapping[str, str]
    constants: Mapping[str, str]
    defaults: Mapping[str, Any]
    supported: Mapping[str, tuple[tuple[Any, ...], str]]
    read: Callable[[Mapping[str, Any], str], dict[str, Any]]
    write: Callable[[Any], dict[str, Any]]
    obsolete: tuple[str, ...]
    unset: tuple[str, ...]
    prefix: str
    embeddings: Modules
    layers: str
    layer: Modules
    head: Modules
    pooler: Modules
    copies: Mapping[str, str]
    buffers: tuple[str, ...]


BERT = Family(
    model_type="bert",
    classes="Bert",
    sizes=SIZES | {"type_vocab_size": "type_vocab_size"},
    constants={
        "layer_norm_eps": "layer_norm_eps",
        "hidden_dropout_prob": "hidden_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "initializer_range": "initializer_range",
    },
    defaults={"type_vocab_size": 2, "pad_token_id": 0},
    supported={
        "hidden_act": EXACT_GELU,
        "position_embedding_type": (("absolute",), "only 'absolute' is"),
        "is_decoder": ((False,), "only encoders are"),
        "add_cross_attention": ((False,), "only encoders are"),
        "quantization_config": PLAIN_WEIGHTS,
    },
    read=lambda values, where: {"position_offset": 0},
    write=lambda config: {"hidden_act": "gelu"},
    obsolete=(),
    unset=(),
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
    pooler={"pooler.dense": ("pooler", DENSE)},
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
    read=lambda values, where: {"position_offset": values["pad_token_id"] + 1},
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
DISTILBERT = dataclasses.replace(
    BERT,
    model_type="distilbert",
    classes="DistilBert",
    sizes={
        "vocab_size": "vocab_size",
        "dim": "hidden_size",
        "n_layers": "num_layers",
        "n_heads": "num_heads",
        "hidden_dim": "intermediate_size",
        "max_position_embeddings": "max_positions",
    },
    constants={
        "dropout": "hidden_dropout",
        "attention_dropout": "attention_dropout",
        "initializer_range": "initializer_range",
    },
    defaults={"pad_token_id": 0},
    supported={"activation": EXACT_GELU, "quantization_config": PLAIN_WEIGHTS},
    read=lambda values, where: {"type_vocab_size": 0},
    write=lambda config: {"activation": "gelu"},
    prefix="distilbert.",
    embeddings={name: path for name, path in BERT.embeddings.items() if "token_type" not in name},
    layers="transformer.layer.{}.",
    layer={
        "attention.q_lin": ("attention/query", DENSE),
        "attention.k_lin": ("attention/key", DENSE),
        "attention.v_lin": ("attention/value", DENSE),
        "attention.out_lin": ("attention/output", DENSE),
        "sa_layer_norm": ("attention/layer_norm", NORM),
        "ffn.lin1": ("feed_forward/intermediate", DENSE),
        "ffn.lin2": ("feed_forward/output", DENSE),
        "output_layer_norm": ("feed_forward/layer_norm", NORM),
    },
    head={
        "vocab_transform": ("transform", DENSE),
        "vocab_layer_norm": ("layer_norm", NORM),
        "vocab_projector": ("", {"bias": "bias"}),
    },
    pooler={},
    copies={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
)


def _read_modernbert(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The kinds of layers, their windows and rotations, in today's form of the configuration or in that of 2024."""

    def positive(name: str, value: Any, kind: Any) -> Any:
        if not isinstance(value, kind) or isinstance(value, bool) or value <= 0:
            raise UserError(f"{where}: {name} is {value!r}, not a positive {'whole ' if kind is int else ''}number")
        return value

    layers = values["num_hidden_layers"]
    every = positive("global_attn_every_n_layers", values.get("global_attn_every_n_layers", 3), int)
    types = values.get("layer_types", [SLIDING if i % every else FULL for i in range(layers)])
    if not isinstance(types, list) or len(types) != layers or not {FULL, SLIDING}.issuperset(types):
        raise UserError(f"{where}: layer_types must be {layers} of {FULL} and {SLIDING}, as num_hidden_layers says")
    head = values["hidden_size"] // values["num_attention_heads"]
    if head % 2:
        raise UserError(f"{where}: heads of width {head}, of which rotations need pairs; num_attention_heads is wrong")
    ropes = values.get("rope_parameters", {})
    if not isinstance(ropes, dict) or not all(
        kind in (FULL, SLIDING) and isinstance(ropes[kind], dict) for kind in ropes
    ):
        raise UserError(f"{where}: rope_parameters must have an object for each of {FULL} and {SLIDING}")
    thetas = []
    for kind, old, default in ((FULL, "global_rope_theta", 160_000.0), (SLIDING, "local_rope_theta", 10_000.0)):
        rope = ropes.get(kind, {})
        if rope.get("rope_type", "default") != "default":
            raise UserError(f"{where}: rope_type={rope['rope_type']!r} is not supported; only 'default' is")
        thetas.append(float(positive("rope_theta", rope.get("rope_theta", values.get(old, default)), int | float)))
    window = values.get("sliding_window", positive("local_attention", values.get("local_attention", 128), int) // 2)
    return {
        "layer_types": tuple(types),
        "window": positive("sliding_window", window, int),
        "full_theta": thetas[0],
        "sliding_theta": thetas[1],
        "classifier_pooling": values.get("classifier_pooling", "cls"),
    }


def _write_modernbert(config: Any) -> dict[str, Any]:
    """Today's form. The tokenizer's files say which tokens are special: transformers' own numbers are never right."""
    thetas = {FULL: config.full_theta, SLIDING: config.sliding_theta}
    return {
        "hidden_activation": "gelu",
        "layer_types": [FULL if config.is_full(i) else SLIDING for i in range(config.num_layers)],
        "local_attention": 2 * config.window,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
        "classifier_pooling": config.classifier_pooling,
    }


_WITHOUT_BIAS = ((False,), "only layers without bias are")
MODERNBERT = Family(
    model_type="modernbert",
    classes="ModernBert",
    sizes=SIZES,
    constants={
        "norm_eps": "layer_norm_eps",
        "embedding_dropout": "embedding_dropout",
        "attention_dropout": "attention_dropout",
        "mlp_dropout": "mlp_dropout",
        "classifier_dropout": "classifier_dropout",
        "initializer_range": "initializer_range",
        "initializer_cutoff_factor": "initializer_cutoff",
    },
    defaults={"pad_token_id": 50_283, "max_position_embeddings": 8192},
    supported={
        "hidden_activation": EXACT_GELU,
        "classifier_activation": EXACT_GELU,
        "classifier_pooling": (("cls", "mean"), "only 'cls' and 'mean' are"),
        "attention_bias": _WITHOUT_BIAS,
        "mlp_bias": _WITHOUT_BIAS,
        "norm_bias": _WITHOUT_BIAS,
        "classifier_bias": _WITHOUT_BIAS,
        "decoder_bias": ((True,), "only a decoder with bias is"),
        "rope_scaling": ((), "only rotations without scaling are"),
        "quantization_config": PLAIN_WEIGHTS,
    },
    read=_read_modernbert,
    write=_write_modernbert,
    obsolete=("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta", "sliding_window"),
    unset=("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"),
    prefix="model.",
    embeddings={
        "embeddings.tok_embeddings": ("embeddings/word_embeddings", TABLE),
        "embeddings.norm": ("embeddings/layer_norm", NORM),
        "final_norm": ("final_norm", NORM),
    },
    layers="layers.{}.",
    layer={
        "attn_norm": ("attention/layer_norm", NORM),
        "attn.Wqkv": ("attention/qkv", DENSE),
        "attn.Wo": ("attention/output", DENSE),
        "mlp_norm": ("feed_forward/layer_norm", NORM),
        "mlp.Wi": ("feed_forward/input", DENSE),
        "mlp.Wo": ("feed_forward/output", DENSE),
    },
    head={
        "head.dense": ("transform", DENSE),
        "head.norm": ("layer_norm", NORM),
        "decoder": ("", {"bias": "bias"}),
    },
    pooler={},
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    buffers=(),
)
FAMILIES = {  # by the model_type of config.json
    "bert": BERT,
    "xlm-roberta": XLM_ROBERTA,
    "roberta": dataclasses.replace(XLM_ROBERTA, classes="Roberta"),  # the same model under another name
    "distilbert": DISTILBERT,
    "modernbert": MODERNBERT,
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
        width, heads = (
            f"{name}={fields[ours]}" for name, ours in family.sizes.items() if ours in ("hidden_size", "num_heads")
        )
        raise UserError(f"{where}: {width} is not divisible by {heads}; one of them is wrong")
    Config = MODELS[family.model_type].Config
    for name, ours in family.constants.items():
        constant = values.get(name, getattr(Config, ours))
        if not isinstance(constant, int | float) or isinstance(constant, bool) or constant < 0:
            raise UserError(f"{where}: {name} is {constant!r}, not a number from 0")
        fields[ours] = float(constant)
    pad = values["pad_token_id"]
    if not isinstance(pad, int) or not 0 <= pad < fields["vocab_size"]:
        raise UserError(f"{where}: pad_token_id={pad!r} is outside the vocabulary of {fields['vocab_size']}")
    return Config(model_type=family.model_type, pad_token_id=pad, **fields, **family.read(values, where))


def config_to_hf(config: EncoderConfig, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of config.json for `config`; other fields of `base` (a config.json as read) are left as they are."""
    values = dict(base or {})
    model_type = values.get("model_type")
    if model_type not in FAMILIES or FAMILIES[model_type].model_type != config.model_type:
        values["model_type"] = config.model_type
    family = FAMILIES[values["model_type"]]
    values |= {} if base else dict.fromkeys(family.unset)
    values |= {name: getattr(config, ours) for name, ours in {**family.sizes, **family.constants}.items()}
    values |= family.write(config) | {"pad_token_id": config.pad_token_id, "tie_word_embeddings": True}
    for name in family.obsolete:
        values.pop(name, None)
    values["architectures"] = [f"{family.classes}ForMaskedLM"]
    values.pop("torch_dtype", None)  # the older name of the next
    values["dtype"] = "float32"
    return values


@functools.cache
def tensor_names(config: EncoderConfig) -> Mapping[str, TreePath]:
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
    modules |= {family.prefix + module: entry for module, entry in family.pooler.items()}
    names = {
        f"{module}.{theirs}": (*filter(None, path.split("/")), ours)
        for module, (path, leaves) in modules.items()
        for theirs, ours in leaves.items()
    }
    shapes = tree_shapes(config)
    names = {name: path for name, path in names.items() if path in shapes}
    assert set(names.values()) == shapes.keys(), "a parameter without a name"
    return names


@functools.cache
def tree_shapes(config: EncoderConfig) -> Mapping[TreePath, tuple[int, ...]]:
    """The shape of every Flax parameter that `tensor_names` lists, from the model itself; nothing is computed."""
    D = config.hidden_size

    def init(ids: jax.Array, hidden_1xD: jax.Array) -> Any:
        key = jax.random.key(0)
        encoder = make_encoder(config).init(key, ids, ids, ids)["params"]
        return {"encoder": encoder, "mlm_head": make_masked_lm_head(config).init(key, hidden_1xD)["params"]}

    tree = jax.eval_shape(init, jax.ShapeDtypeStruct((1, 1), jnp.int32), jax.ShapeDtypeStruct((1, D), jnp.float32))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    shapes = {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}
    has_pooler = bool(FAMILIES[config.model_type].pooler)
    return shapes | ({("pooler", "kernel"): (D, D), ("pooler", "bias"): (D,)} if has_pooler else {})


def torch_shape(path: TreePath, config: EncoderConfig) -> tuple[int, ...]:
    """The shape of the parameter at `path` in PyTorch."""
    shape = tree_shapes(config)[path]
    return shape[::-1] if path[-1] == "kernel" else shape
