"""Experiment trackers: curves, final accuracies and adversarial examples of runs in the formats of other programs."""
