from importlib.metadata import EntryPoint

import pytest

from bench import registry
from bench.attacks.pgd import pgd
from bench.errors import BenchError
from bench.method import Method
from bench.registry import DATASETS, METHODS, MODELS, Registry, load_plugin

pytestmark = pytest.mark.usefixtures("clean_registries")


def test_the_parts_of_the_package_are_there():
    assert {"pgd_at", "early_stopping"} <= set(METHODS.names())
    assert "digits" in DATASETS.names()
    assert {"small_cnn", "preact_resnet18"} <= set(MODELS.names())


@pytest.mark.parametrize("kind", [METHODS, DATASETS, MODELS], ids=lambda kind: kind.kind)
def test_every_part_imports_under_its_own_name(kind):
    for name in kind.names():
        entry = kind.get(name)
        assert (entry.info if kind is METHODS else entry).name == name
        assert kind.get(name) is entry
        assert kind is not METHODS or issubclass(entry, Method)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("pgd_att", "; did you mean 'pgd_at'?"), ("zzz", "; known: early_stopping, pgd_at")],
)
def test_an_unknown_name_suggests_the_nearest(name, hint, monkeypatch):
    monkeypatch.setattr(METHODS, "names", lambda: ["pgd_at", "early_stopping"])
    with pytest.raises(BenchError) as error:
        METHODS.get(name)
    assert str(error.value) == f"unknown method '{name}'{hint}"


@pytest.fixture
def elsewhere(monkeypatch):
    """A registry whose entry points belong to packages that are not ours."""
    points = {"there": "bench.attacks.pgd:pgd", "module": "no_such_module:x", "attribute": "bench.attacks.pgd:no_such"}
    entries = [EntryPoint(name, value, "elsewhere") for name, value in points.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: [e for e in entries if e.group == group])
    return Registry("thing", "elsewhere")


def test_names_are_known_before_anything_is_imported(elsewhere):
    assert elsewhere.names() == ["attribute", "module", "there"]
    assert elsewhere.get("there") is pgd


@pytest.mark.parametrize("name", ["module", "attribute"])
def test_an_entry_that_does_not_import_is_one_sentence(elsewhere, name):
    with pytest.raises(BenchError, match=rf"^thing '{name}' \(.*:.*\) cannot be imported: .*no_such"):
        elsewhere.get(name)


def test_a_name_belongs_to_one_object(elsewhere):
    first = ["equal"]
    elsewhere.add("mine", first)
    elsewhere.add("mine", first)
    assert elsewhere.get("mine") is first
    with pytest.raises(BenchError, match=r"^the thing name 'mine' is registered already$"):
        elsewhere.add("mine", ["equal"])
    with pytest.raises(BenchError, match="'there' is registered already"):
        elsewhere.add("there", object())
    assert elsewhere.get("there") is pgd


PLUGIN = """
from bench.parameters import MethodInfo
from methods.pgd_at import PGDAT

class Mine(PGDAT):
    info = MethodInfo(name="mine", title="Mine", description="", paper="", year=2024)

METHODS = {"mine": Mine}
"""


@pytest.fixture
def plugin(tmp_path):
    def write(text):
        (tmp_path / "plugin.py").write_text(text)
        return tmp_path / "plugin.py"

    return write


def test_a_plugin_adds_its_parts_and_loads_once(plugin):
    path = plugin(PLUGIN)
    load_plugin(path)
    mine = METHODS.get("mine")
    assert mine.info.title == "Mine"
    path.write_text("raise RuntimeError('executed again')")
    load_plugin(path)
    assert METHODS.get("mine") is mine


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1 / 0", " does not import: ZeroDivisionError: division by zero"),
        ("def", " does not import: SyntaxError: invalid syntax (plugin.py, line 1)"),
        ("import no_such_module", " does not import: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = 1", " lists no parts: it needs METHODS, DATASETS or MODELS"),
        ("METHODS = ['mine']", ": METHODS, DATASETS and MODELS map names to entries"),
        ("METHODS = {'pgd_at': 1}", ": the method name 'pgd_at' is registered already"),
        ("MODELS = {'small_cnn': 1}", ": the model name 'small_cnn' is registered already"),
    ],
)
def test_a_wrong_plugin_is_one_sentence_and_can_be_mended(plugin, text, problem):
    path = plugin(text)
    with pytest.raises(BenchError) as error:
        load_plugin(path)
    assert str(error.value) == f"plug-in {path}{problem}"
    load_plugin(plugin(PLUGIN))
    assert METHODS.get("mine").info.title == "Mine"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("plugin.py", "no such file"),
        (".", "no such file"),
        ("a" * 5000, "no such file"),
        ("a\0b", "no such file"),
        ("plugin.txt", "not a Python file"),
    ],
    ids=["missing", "folder", "long", "null", "text"],
)
def test_a_plugin_is_a_python_file(tmp_path, name, problem):
    (tmp_path / "plugin.txt").write_text(PLUGIN)
    with pytest.raises(BenchError) as error:
        load_plugin(tmp_path / name)
    assert str(error.value) == f"plug-in {tmp_path / name}: {problem}".replace("\0", " ")


def test_two_packages_may_not_share_a_name(monkeypatch):
    points = [EntryPoint("fomo", value, "bench.methods") for value in ("methods.fomo:FOMO", "theirs:FOMO")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    with pytest.raises(BenchError, match="two installed packages register the method 'fomo'"):
        Registry("method", "bench.methods").names()


@pytest.mark.parametrize(
    ("text", "said"),
    [("import sys; sys.exit(0)", "does not import: SystemExit"), ("METHODS = {'odd': 3}", "'odd' is not a method")],
)
def test_a_plugin_of_something_else(load, tmp_path, text, said, clean_registries):
    (tmp_path / "odd.py").write_text(text)
    with pytest.raises(BenchError, match=said):
        load({"methods: [pgd_at]": "methods: [odd]\nplugins: [odd.py]"})
