"""Types and bytes of quantized rows: `mixture.plan_types` chooses, `quantize.quantize` computes."""
