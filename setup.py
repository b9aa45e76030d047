"""The packages. The recipes of configs/ are installed as ppa_jax.configs, so that --config=ppa works from anywhere."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ppa_jax*"]), "ppa_jax.configs"],
    package_dir={"ppa_jax.configs": "configs"},
)
