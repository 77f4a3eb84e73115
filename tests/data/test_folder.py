import hashlib
import os
from unicodedata import normalize

import pytest

from bench.data.folder import below, classes_in, content_digest, images_in, labelled, state_of, unread
from bench.errors import BenchError


@pytest.fixture
def tree(tmp_path):
    for name in ("b/2.png", "b/10.JPG", "b/1.Webp", "a/x.ppm", "a/notes.txt", "a/.hidden.png", ".git/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "a" / "folder.png").mkdir()
    (tmp_path / "loose.png").touch()
    return tmp_path


def test_classes_and_images_are_sorted_and_nothing_else_is_listed(tree):
    assert list(classes_in(tree).items()) == [("a", tree / "a"), ("b", tree / "b")]
    assert [path.name for path in images_in(tree / "b")] == ["1.Webp", "10.JPG", "2.png"]
    assert images_in(tree / "a") == [tree / "a" / "x.ppm"]


def test_a_link_that_leads_nowhere_is_no_image_less(tree):
    (tree / "a" / "gone.png").symlink_to(tree / "nowhere")
    assert tree / "a" / "gone.png" in images_in(tree / "a")
    with pytest.raises(BenchError, match=r"a/gone.png cannot be read: No such file"):
        content_digest(tree, images_in(tree / "a"))


def test_labels_are_those_asked_for_in_the_order_asked_for(tree):
    paths, labels = labelled({tree / "b": 7, tree / "a": 3})
    assert [path.name for path in paths] == ["1.Webp", "10.JPG", "2.png", "x.ppm"]
    assert labels.tolist() == [7, 7, 7, 3]
    assert labels.dtype == "int64"


def test_a_class_without_images_is_named(tree):
    (tree / "b" / "c").mkdir()
    with pytest.raises(BenchError, match=r"^the class folder \S+/b/c holds no images$"):
        labelled({tree / "b" / "c": 0})
    with pytest.raises(BenchError, match=r"/nope cannot be read: No such file or directory$"):
        labelled({tree / "nope": 0})


def test_names_count_in_their_normal_form(tmp_path):
    """As macOS writes them (decomposed), and as others do."""
    digests = []
    for form in ("NFC", "NFD"):
        folder = tmp_path / form / normalize(form, "Übung") / normalize(form, "Größe")
        for name in ("zebra/1.png", "ähre/ü.png", "ähre/u.png"):
            (path := folder / normalize(form, name)).parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
        assert below(tmp_path / form, "Übung/Größe") == folder
        classes = classes_in(folder)
        assert [*classes] == ["zebra", "ähre"]
        paths, _ = labelled(dict.fromkeys(classes.values(), 0))
        assert [path.read_text() for path in paths] == ["zebra/1.png", "ähre/u.png", "ähre/ü.png"]
        digests.append(content_digest(folder, paths))
    assert digests[0] == digests[1]
    assert below(tmp_path, "Über") == tmp_path / "Über"
    (folder / "ähre").mkdir()
    with pytest.raises(BenchError, match="has two folders of the class ähre; move their images into one"):
        classes_in(folder)


def test_what_is_not_read_is_named(tree, tmp_path_factory):
    deep = tree / "b" / "nested" / "deeper"
    deep.mkdir(parents=True)
    (deep / "1.png").touch()
    (tree / "c").symlink_to(tmp_path_factory.mktemp("elsewhere"), target_is_directory=True)
    (tree / "c" / "x.heic").touch()
    (tree / "b" / "loop").symlink_to(tree, target_is_directory=True)
    (tree / "b" / "gone").symlink_to(tree / "nowhere")
    read = images_in(tree / "b") + images_in(tree / "a")
    expected = ["a/notes.txt", "b/gone", "b/loop", "b/nested/deeper/1.png", "c/x.heic", "loose.png"]
    assert unread([tree, tree / "missing"], read) == [str(tree / name) for name in expected]
    assert unread([tree], read, {"b", "c", "nested"}) == [str(tree / name) for name in ("a/notes.txt", "loose.png")]


def test_the_digest_is_of_sorted_names_and_contents(tree):
    paths = images_in(tree / "b") + images_in(tree / "a")
    names = ("a/x.ppm", "b/1.Webp", "b/10.JPG", "b/2.png")
    lines = "".join(f"{name}\t{hashlib.sha256(name.encode()).hexdigest()}\n" for name in names)
    assert content_digest(tree, paths) == hashlib.sha256(lines.encode()).hexdigest()
    assert content_digest(tree, paths[::-1]) == content_digest(tree, paths)


def test_the_digest_sees_another_name_and_another_content_whatever_size_and_time_say(tree):
    path = tree / "b" / "2.png"

    def described():
        paths = images_in(tree / "b")
        return content_digest(tree, paths), state_of(tree, paths)

    before = described()
    times = path.stat()
    path.write_bytes(b"B/2.PNG")  # as long as before
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = described()
    path.rename(path.with_name("3.png"))
    renamed = described()
    assert len({before[0], changed[0], renamed[0]}) == len({before[1], changed[1], renamed[1]}) == 3
    path.with_name("3.png").rename(path)
    path.write_bytes(b"b/2.png")
    back = described()
    assert back[0] == before[0]
    assert back[1] != before[1]
