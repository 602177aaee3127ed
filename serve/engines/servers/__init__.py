"""Models that another program runs: Ollama, and servers that speak OpenAI's protocol."""
