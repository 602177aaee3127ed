"""An adapter as it lies in its folder: PEFT's of any version, mlx-lm's, and what today's PEFT would read."""
