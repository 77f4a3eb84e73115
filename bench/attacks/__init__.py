"""Attacks: search, inside the threat model, for an image that the network gets wrong."""
