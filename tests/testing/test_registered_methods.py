"""The conformance suite over every registered method, as part of the normal test run."""

from bench.testing.test_conformance import _one_thread, test_conformance

__all__ = ["_one_thread", "test_conformance"]
