"""Datasets: real images as uint8 tensors, and the batches that training cuts from them."""
