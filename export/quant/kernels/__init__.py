"""ggml's quantizers in numba, a super-block per SIMD lane; `quantize.py` is their only caller."""
