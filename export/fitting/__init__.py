"""Which mixture of types costs this model the least in a size: sensitivities, the choice, and its test."""
