"""Runs in the formats of other programs: files of weights, folders for a model hub, entries of RobustBench's zoo."""
