"""The base in torch, with its adapter."""
