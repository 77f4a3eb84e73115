from bench.registry import METHODS
from bench.reporting.leaderboard import leaderboards
from bench.reporting.method_card import describe

from ..storage.conftest import protocol_of
from .html_report import HOSTILE, boards, resolved

__all__ = ["boards"]


def test_parameters_with_value_and_origin(boards):
    _, (board, _), _ = boards
    by_label = {row.label: describe(row, "digits", "multi_step") for row in board.rows}
    canonical, custom = by_label["FOMO"], by_label["FOMO, s=5%"]
    assert [parameter.name for parameter in canonical.parameters] == list(METHODS.get("fomo").Params.model_fields)
    usual, own = (
        {parameter.name: parameter for parameter in described.parameters} for described in (canonical, custom)
    )
    assert (usual["fraction"].value, usual["fraction"].origin) == (0.035, "declared")
    assert (own["fraction"].value, own["fraction"].origin) == (0.05, "suite")
    assert own["fraction"].note.startswith("instead of 0.035; ")
    assert own == usual | {"fraction": own["fraction"]}
    assert by_label[HOSTILE].info is None
    assert [(parameter.name, parameter.value) for parameter in by_label[HOSTILE].parameters] == [("a<b", "&")]


def test_a_method_whose_parameters_have_changed(make_run, store):
    """Not those that the runs recorded: nothing is said of their origin."""
    version = METHODS.get("fomo").info.version
    store.ingest(make_run(method="fomo", version=version, params={"fraction": 0.035}))
    store.ingest(make_run(method="fomo", version=version, params={"fractoin": 0.035}, seed=1))
    (board,) = leaderboards(store)
    for row in board.rows:
        described = describe(row, "digits", "multi_step")
        assert "other parameters" in described.caveat
        assert [parameter.origin for parameter in described.parameters] == [None]


def test_a_canonical_teacher_is_not_called_the_choice_of_the_suite(make_run, store):
    for seed, entry in enumerate(({}, {"params": {"robust": {"method": "trades"}}, "label": "Other"})):
        store.ingest(make_run(seed=seed, **resolved(protocol_of(), "kd_swa", **entry)))
    (board,) = leaderboards(store)
    by_label = {row.label: describe(row, "digits", "multi_step").parameters for row in board.rows}
    origins = {label: {parameter.name: parameter.origin for parameter in found} for label, found in by_label.items()}
    assert origins["KD-SWA"]["robust"] == "code"
    assert origins["Other"] == origins["KD-SWA"] | {"robust": "suite"}
