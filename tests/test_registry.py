import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bench import registry
from bench.attacks.pgd import pgd
from bench.cli.doctor import diagnose
from bench.cli.listing import list_models, show_model
from bench.errors import BenchError
from bench.models.architecture import Architecture, Family
from bench.outside import file_digest
from bench.registry import DATASETS, METHODS, MODELS, Registry, load_plugin
from bench.training.method import Method

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*")


def test_the_parts_of_the_package_are_there():
    assert {"pgd_at", "early_stopping"} <= set(METHODS.names())
    assert "digits" in DATASETS.names()
    assert {"small_cnn", "preact_resnet18"} <= set(MODELS.names())


@pytest.mark.parametrize("kind", [METHODS, DATASETS, MODELS], ids=lambda kind: kind.kind)
def test_every_part_imports_under_its_own_name(kind):
    for name in kind.names():
        entry = kind.entry(name)
        assert (entry.info if kind is METHODS else entry).name == name
        assert kind.entry(name) is entry
        assert isinstance(entry, Family) or kind.get(name) is entry
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
from bench.config.hyperparameters import MethodInfo
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


# --- identity of plug-ins --------------------------------------------------------------------------------------------


HELPED = (
    "import sys\nsys.path.append({folder!r})\nimport helper\n"
    + PLUGIN
    + """
def later():
    import package.inner
    from . import nothing
"""
)


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A plug-in file that imports a module, and in a function a module of a package; and a file beside it."""
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "package").mkdir()
    for name in ("helper.py", "package/__init__.py", "package/inner.py", "package/unused.py", "beside.py"):
        (tmp_path / name).write_text("import torch, methods.pgd_at\nX = 1\n")
    (tmp_path / "plugin.py").write_text(HELPED.replace("{folder!r}", repr(str(tmp_path))))
    yield tmp_path
    sys.modules.pop("helper", None)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("plugin.py", True),
        ("helper.py", True),
        ("package/__init__.py", True),
        ("package/inner.py", True),
        ("package/unused.py", False),
        ("beside.py", False),
    ],
)
def test_the_digest_of_a_plugin_is_of_what_it_imports(parts, name, counts):
    before = file_digest(parts / "plugin.py")
    assert file_digest(parts / "plugin.py") == before
    (parts / name).write_text((parts / name).read_text() + "Y = 2\n")
    assert (file_digest(parts / "plugin.py") != before) == counts


def test_entries_of_plugins_have_the_digest_of_their_file(parts):
    load_plugin(parts / "plugin.py")
    digest = file_digest(parts / "plugin.py")
    assert METHODS.digest("mine") == digest
    assert METHODS.digest("pgd_at") is None
    assert METHODS.digest("none") is None
    (parts / "helper.py").write_text("X = 2\n")
    assert METHODS.digest("mine") == digest  # of the code that was imported


def test_installed_plugins_have_the_digest_of_their_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("of_theirs/__init__.py", "of_theirs/parts.py", "of_theirs/unused.py", "alone_of_theirs.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("thing = object()\n")
    values = {"things": "of_theirs.parts:thing", "alone": "alone_of_theirs:thing", "ours": "methods.pgd_at:PGDAT"}
    points = [EntryPoint(name, value, "theirs") for name, value in values.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    first = {name: Registry("thing", "theirs").digest(name) for name in values}
    assert first["ours"] is None
    assert Registry("thing", "theirs").digest("things/variant") == first["things"]
    for name in ("of_theirs/unused.py", "alone_of_theirs.py"):
        (tmp_path / name).write_text("thing = None\n")
    second = {name: Registry("thing", "theirs").digest(name) for name in values}
    assert (first["things"] != second["things"], first["alone"] != second["alone"]) == (True, True)


@pytest.mark.parametrize(
    "text",
    ["raise SystemExit(0)", "import os; os._exit(0)", "raise BaseException", "1 / 0", "def", "import nothing_so"],
)
def test_an_installed_plugin_that_fails_is_one_sentence(tmp_path, monkeypatch, capfd, text):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "failing_of_theirs.py").write_text(f"print('imported')\n{text}\n")
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint("x", "failing_of_theirs:x", group)])
    with pytest.raises(BenchError, match=r"^thing 'x' \(failing_of_theirs:x\) cannot be imported: \w+: "):
        Registry("thing", "theirs").get("x")
    assert capfd.readouterr().out == ""


# --- families --------------------------------------------------------------------------------------------------------


def thing(variant):
    if variant not in {"1-2", "deep/er"}:
        raise BenchError(f"unknown thing 'things/{variant}'; did you mean 'things/1-2'?")
    return Architecture(f"things/{variant}", "Thing", "none", lambda classes, shape: None)


def family(**changes):
    return Family(**{"name": "things", "title": "Things", "written": "<a>-<b>", "member": thing, **changes})


@pytest.fixture
def things(elsewhere):
    elsewhere.add("things", family(listed=("1-2",)))
    return elsewhere


@pytest.mark.parametrize("variant", ["1-2", "deep/er"])
def test_a_member_is_asked_for_by_family_and_variant(things, variant):
    found = things.get(f"things/{variant}")
    assert isinstance(found, Architecture)
    assert found.name == f"things/{variant}"


def test_a_family_is_no_part_but_an_entry(things):
    with pytest.raises(
        BenchError, match=r"^'things' is a family of things: write 'things/<a>-<b>', such as 'things/1-2'$"
    ):
        things.get("things")
    assert isinstance(things.entry("things"), Family)
    assert things.names() == ["attribute", "module", "there", "things"]
    things.add("others", family())
    with pytest.raises(BenchError, match=r"^'others' is a family of things: write 'others/<a>-<b>'$"):
        things.get("others")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("things/3-4", "unknown thing 'things/3-4'; did you mean 'things/1-2'?"),
        ("things/", "unknown thing 'things/'; did you mean 'things/1-2'?"),
        ("thinks/1-2", "unknown thing 'thinks/1-2'; did you mean 'things'?"),
        ("there/1-2", "unknown thing 'there/1-2': 'there' has no variants"),
        ("/1-2", "unknown thing '/1-2'; known: attribute, module, there, things"),
        ("things/1-2/", "unknown thing 'things/1-2/'; did you mean 'things/1-2'?"),
    ],
)
def test_a_member_that_there_is_not_is_one_sentence(things, name, problem):
    with pytest.raises(BenchError) as error:
        things.get(name)
    assert str(error.value) == problem


def test_a_family_that_does_not_import_is_one_sentence(elsewhere):
    with pytest.raises(BenchError, match=r"^thing 'module' \(no_such_module:x\) cannot be imported: "):
        elsewhere.get("module/1-2")


def test_a_family_can_be_registered_twice_and_members_are_not_kept(things):
    things.add("things", things.entry("things"))
    with pytest.raises(BenchError, match="'things' is registered already"):
        things.add("things", family())
    things.get("things/1-2")
    assert things.names() == ["attribute", "module", "there", "things"]
    del things._added["things"]
    with pytest.raises(BenchError, match="unknown thing 'things/1-2'"):
        things.get("things/1-2")


def test_a_whole_name_with_a_stroke_is_found_first(things):
    part = object()
    things.add("things/1-2", part)
    assert things.get("things/1-2") is part
    assert things.get("things/deep/er").name == "things/deep/er"


FAMILY_PLUGIN = """
from bench.models.architecture import Architecture, Family
from bench.models.small_cnn import SmallCNN

def member(variant):
    width = int(variant)
    build = lambda classes, shape: SmallCNN(classes, shape[0], width)
    return Architecture(f"cnn_of/{variant}", f"CNN of {variant}", "none", build)

MODELS = {"cnn_of": Family("cnn_of", "CNN", "<width>", member, listed=("4", "8"))}
"""


def test_a_plugin_may_bring_a_family(plugin):
    load_plugin(plugin(FAMILY_PLUGIN))
    assert MODELS.get("cnn_of/4").build(10, (1, 8, 8)).conv1.weight.shape == (4, 1, 3, 3)
    listed = {row["name"]: row for row in list_models()}
    assert {"cnn_of/4", "cnn_of/8"} <= listed.keys()
    assert "cnn_of" not in listed
    assert listed["cnn_of/8"]["parameters"] > listed["cnn_of/4"]["parameters"] > 0


def test_what_is_listed_and_shown_of_families():
    rows = {row["name"]: row for row in list_models()}
    assert {"timm/<name>", "wide_resnet/28-10", "wide_resnet/34-10", "resnet18"} <= rows.keys()
    assert len({tuple(row) for row in rows.values()}) == 1  # a table
    for name, row in rows.items():
        if name == "timm/<name>":
            assert row["parameters"] is row["gflops"] is None
            assert row["title"]
        else:
            assert NAME.fullmatch(name)
            assert row["parameters"] > 0
            assert row["gflops"] > 0
    for name in ("small_cnn", "wide_resnet/28-10"):
        assert rows[name].items() <= show_model(name).items()
    assert show_model("timm/resnet18")["parameters"] == 11_689_512
    with pytest.raises(
        BenchError, match=r"^'wide_resnet' is a family of models: write 'wide_resnet/<depth>-<width>', "
    ):
        show_model("wide_resnet")


def test_a_model_that_cannot_be_measured_is_shown_without_a_size():
    def build(classes, shape):
        raise NotImplementedError

    MODELS.add("odd", Architecture("odd", "Odd", "none", build))
    assert show_model("odd")["parameters"] is None
    assert show_model("odd")["gflops"] is None


def test_a_suite_may_name_a_member(load):
    assert load({"model: small_cnn": "model: wide_resnet/10-1"}).suite.model == "wide_resnet/10-1"
    with pytest.raises(BenchError, match=r"'wide_resnet' is a family of models: write 'wide_resnet/<depth>-<width>'"):
        load({"model: small_cnn": "model: wide_resnet"})
    with pytest.raises(BenchError, match=r"did you mean 'wide_resnet/28-10'\?$"):
        load({"model: small_cnn": "model: wide_resnet/28_10"})


def test_the_check_of_the_installation_counts_a_family_as_one():
    names = MODELS.names()
    (found,) = [check for check in diagnose(Path("results"), None) if check.check == "models"]
    assert found.ok
    assert found.detail == f"{len(names)} can be imported: {', '.join(names)}"


# --- packages and plug-ins that are wrong ----------------------------------------------------------------------------


def test_two_packages_may_not_share_a_name(monkeypatch):
    points = [EntryPoint("fomo", value, "bench.methods") for value in ("methods.fomo:FOMO", "theirs:FOMO")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    with pytest.raises(BenchError, match="two installed packages register the method 'fomo'"):
        Registry("method", "bench.methods").names()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys; sys.exit(0)", "does not import: SystemExit"),
        ("METHODS = {'odd': 3}", "'odd' is not a valid method"),
    ],
)
def test_a_plugin_of_something_else(load, tmp_path, text, said):
    (tmp_path / "odd.py").write_text(text)
    with pytest.raises(BenchError, match=said):
        load({"methods: [pgd_at]": "methods: [odd]\nplugins: [odd.py]"})
