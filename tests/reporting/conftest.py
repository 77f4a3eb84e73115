"""The run folders made by hand that the tests of the store use serve here as well."""

import pytest

from ..storage.conftest import make_run, protocol_of, results, store

NAMES = (
    "a|b & <script>alert(1)</script> 5 %",
    "two\nlines \\ {} # $ ^ ~ _x_ [y](z) `c` \"q\" 'p' --",
    "تدريب خصومي",
    "对抗训练",
)
"""Labels that every format has to bring out right."""

CLASSES = {"classes": 10}
"""What a finished run states of its dataset; it has collapsed if it is no better than guessing one of so many."""

__all__ = ["CLASSES", "NAMES", "make_run", "protocol_of", "results", "store"]


@pytest.fixture
def take(make_run, store):
    """Make a run folder and take it in."""

    def take(*args, done=CLASSES, **kwargs):
        folder = make_run(*args, done=done, **kwargs)
        store.ingest(folder)
        return folder

    return take
