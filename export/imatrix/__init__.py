"""Importance matrices: the file, and how one is collected."""
