"""The learning side: blocks in, probabilities out. Knows nothing of `sonde.read`."""
