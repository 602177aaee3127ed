"""Which packages there are: lorafold/ and, as lorafold.train, …, the top-level folders beside it.

setuptools would find those by the symlinks in lorafold/ alone, which a source distribution does not carry.
All else stands in pyproject.toml.
"""

from setuptools import find_packages, setup

beside = ("train", "export", "serve", "recipes")
packages = {"lorafold", *(f"lorafold.{name}" for name in (*find_packages("lorafold"), *beside))}
packages |= {f"lorafold.{top}.{name}" for top in beside for name in find_packages(top)}
setup(packages=sorted(packages))
