"""Ollama as it behaves: its rules on prompts, version by version, and the client of its API."""
