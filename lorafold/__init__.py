"""lorafold: train an adapter, fold it into its base, ship it to llama.cpp and Ollama, see what changed."""

__version__ = "0.1.0"
