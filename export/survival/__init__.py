"""What of an adapter's change is left once the weights are rounded: measured, told, and bought back."""
