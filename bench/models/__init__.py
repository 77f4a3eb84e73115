"""Architectures: networks that take images in [0, 1] and return logits."""
