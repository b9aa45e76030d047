"""Aligns the languages of multilingual BERT encoders with parallel text, in JAX.

`from ppa_jax import align, Encoder`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppa_jax.api import align
    from ppa_jax.encoder import Encoder

__all__ = ["Encoder", "__version__", "align"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On demand: `python -m ppa_jax.encoder` must not find the module imported already, nor a config pull in JAX.
    if name == "Encoder":
        from ppa_jax.encoder import Encoder

        return Encoder
    if name == "align":
        from ppa_jax.api import align

        return align
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
