"""The run folders made by hand that the tests of the store use serve here as well."""

from ..store.conftest import make_run, protocol_of, results, store

__all__ = ["make_run", "protocol_of", "results", "store"]
