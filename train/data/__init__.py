"""Files -> checked examples: `load_splits` reads everything that a config names."""

from lorafold.train.data.load import load_splits

__all__ = ["load_splits"]
