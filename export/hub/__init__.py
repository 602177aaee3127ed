"""An export on the Hugging Face Hub: its files, a model card, and what `ollama run hf.co/…` reads."""
