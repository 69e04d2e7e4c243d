"""The model side: texts in, pooled activations out."""
