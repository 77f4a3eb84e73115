import os

import pytest

from bench.config.yaml_file import MAX_BYTES, MAX_DEPTH, read_suite_file
from bench.errors import BenchError


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "s.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_suite_file(path)

    return read


def test_content_and_lines(read):
    file = read("name: a\ntraining:\n  epochs: 3\n  milestones:\n    - 0.5\n    - 0.75\nflow: {b: [c, d],\n  e: f}\n")
    assert file.data == {
        "name": "a",
        "training": {"epochs": 3, "milestones": [0.5, 0.75]},
        "flow": {"b": ["c", "d"], "e": "f"},
    }
    assert file.line(()) == 1
    assert file.line(("training",)) == 2
    assert file.line(("training", "milestones", 1)) == 6
    assert file.line(("flow", "b", 0)) == 7
    assert file.line(("flow", "e")) == 8


def test_skips_parts_that_the_file_does_not_contain(read):
    file = read("a:\n  b: {c: 1}\n")
    assert file.existing(("a", "tag", "b", "missing")) == ("a", "b")
    assert file.line(("a", "tag", "b", "missing")) == 2
    assert file.line(("nowhere",)) == 1


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: [2\nc: 3\n", "3: invalid YAML: expected ',' or ']', but got ':'"),
        ("a: 1\n\tb: 2\n", "2: invalid YAML: found character '\\t' that cannot start any token"),
        ("a: b: c\n", "1: invalid YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 1\n", "2: invalid YAML: expected a single document in the stream, but found another document"),
        ("a: 1\nb: '\n", "2: invalid YAML: found unexpected end of stream"),
        ("a: 1\nb: \x00\n", "1: invalid YAML: unacceptable character #x0000: special characters are not allowed"),
        ("a: 1\nb: 2024-13-45\n", "2: invalid YAML: '2024-13-45' is no timestamp"),
        ("a: 1\nb: !!bool maybe\n", "2: invalid YAML: 'maybe' is no bool"),
        ("a: 1\nb: !!int ''\n", "2: invalid YAML: '' is no int"),
        ("a: 1\nb: !!timestamp x\n", "2: invalid YAML: 'x' is no timestamp"),
        (f"a: {'9' * 5000}\n", f"1: invalid YAML: '{'9' * 60}' is no int"),
        (f"a: 0x{'f' * 5000}\n", f"1: the number 0x{'f' * 58} is too large"),
        (f"a: [-{2**64}]\n", f"1: the number -{2**64} is too large"),
        ("a: 1\nb: 2\na: 3\n", "3: duplicate key 'a'"),
        ("a:\n  b: 2\n  b: 3\n", "3: duplicate key 'b'"),
        ("a: [{b: 2,\n b: 3}]\n", "2: duplicate key 'b'"),
        (BOMB, "2: aliases are not allowed in a suite; write the value out"),
        ("a: &a [*a]\n", "1: aliases are not allowed in a suite; write the value out"),
        ("a: " + "[" * 100_000, f"1: nested deeper than {MAX_DEPTH} levels"),
        ("a: " + "[" * MAX_DEPTH + "]" * MAX_DEPTH, f"1: nested deeper than {MAX_DEPTH} levels"),
        ("- a\n- b\n", "1: a suite is a mapping of keys such as 'name' and 'dataset'"),
        ("", "1: a suite is a mapping of keys such as 'name' and 'dataset'"),
        ("? [a]\n: 1\n", "1: a key must be a word"),
        ("a: 1\n5: 1\n", "2: a key must be a word, not '5'"),
        ("a: 1\nyes: 1\n", "2: a key must be a word, not 'yes'"),
        ("a: 1\n<<: {b: 1}\n", "2: a key must be a word, not '<<'"),
    ],
)
def test_wrong_yaml_is_one_sentence_with_its_line(read, tmp_path, text, sentence):
    with pytest.raises(BenchError) as error:
        read(text)
    assert str(error.value) == f"{tmp_path / 's.yaml'}:{sentence}"


def test_as_deep_as_allowed(read):
    assert read("a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)).data["a"] is not None


@pytest.mark.parametrize("tag", ["python/object/apply:os.system", "python/name:os.system", "python/object/new:set"])
def test_nothing_is_executed(read, tag):
    with pytest.raises(BenchError, match=r"s\.yaml:1: invalid YAML: could not determine a constructor"):
        read(f"a: !!{tag} ['touch executed']\n")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"name: \xff\n", "cannot be read as UTF-8 text: .*0xff in position 6: invalid start byte"),
        (b"#" * (MAX_BYTES + 1), rf"{MAX_BYTES + 1} bytes; a suite file has at most {MAX_BYTES}"),
    ],
    ids=["latin", "large"],
)
def test_what_is_no_small_text_is_refused(read, content, problem):
    with pytest.raises(BenchError, match=rf"s\.yaml: {problem}$"):
        read(content)


def test_there_must_be_a_file(tmp_path):
    with pytest.raises(BenchError, match=r"s\.yaml: no such suite file$"):
        read_suite_file(tmp_path / "s.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zeros.yaml").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe.yaml", tmp_path / "zeros.yaml"):
        with pytest.raises(BenchError, match=rf"^{path}: not a file$"):
            read_suite_file(path)
