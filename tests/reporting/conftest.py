"""The run folders made by hand that the tests of the store use serve here as well."""

from ..store.conftest import make_run, protocol_of, results, store

NAMES = (
    "a|b & <script>alert(1)</script> 5 %",
    "two\nlines \\ {} # $ ^ ~ _x_ [y](z) `c` \"q\" 'p' --",
    "تدريب خصومي",
    "对抗训练",
)
"""Labels that every format has to bring out right."""

__all__ = ["NAMES", "make_run", "protocol_of", "results", "store"]
