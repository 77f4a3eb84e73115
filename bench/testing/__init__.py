"""The conformance suite: requirements for every method.

As a function, `conform("my_method")` runs every check on a registered method; under pytest,
`pytest --pyargs bench.testing` runs them over all registered methods, one test each, and
`BENCH_METHODS=my_method pytest --pyargs bench.testing` over some. The data are real digits; no check takes more than
a few seconds on one CPU core.
"""

from bench.testing.conformance import CHECKS, NotConforming, conform

__all__ = ["CHECKS", "NotConforming", "conform"]
