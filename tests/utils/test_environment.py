from bench.utils.environment import code_digest, other_code

NOW = code_digest()


def test_a_run_is_told_from_one_of_other_code():
    assert other_code({"code": NOW}, {}) is None
    assert other_code({}, {}) == "code that it does not name"
    assert other_code({"code": "a" * 64}, {}) == f"other code (digest aaaaaaaaaaaa, here {NOW[:12]})"


def test_a_run_is_told_from_one_with_other_plugins():
    mine, other = {"method mine": "b" * 64}, {"method mine": "c" * 64}
    assert other_code({"code": NOW, "plugins": mine}, mine) is None
    for recorded, here, digests in (
        (mine, other, "bbbbbbbbbbbb, here cccccccccccc"),
        ({}, mine, "None, here bbbbbbbbbbbb"),
    ):
        said = other_code({"code": NOW, "plugins": recorded}, here)
        assert said == f"other code of the plug-in for the method mine (digest {digests})"
