import itertools
import random

import numpy as np
import pytest
import torch

from bench.utils.rng import HostRandomness, RngStreams, derive_seed, generator


def draw(random: torch.Generator) -> list[int]:
    return torch.randint(2**62, (4,), generator=random).tolist()


def test_seeds_are_what_they_were():
    # int(sha256(b"0/order/0").hexdigest()[:16], 16) >> 1: runs of older versions must stay repeatable
    assert derive_seed(0, "order") == 0x36E5703597F5E537
    assert derive_seed(1, "attack", 7) == 0x580A6E698572B3C0


def test_every_argument_counts_and_nothing_else():
    arguments = list(itertools.product(range(5), ("order", "attack", "track/test"), range(5)))
    seeds = [derive_seed(*argument) for argument in arguments]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, "1", 11) != derive_seed(11, "1", 1) != derive_seed(1, "1/1", 1)
    torch.manual_seed(5)
    np.random.seed(5)
    assert [derive_seed(*argument) for argument in arguments] == seeds


def test_generators_repeat_their_draws():
    assert draw(generator(0, "attack", 3)) == draw(generator(0, "attack", 3))
    assert draw(generator(0, "attack", 3)) != draw(generator(0, "attack", 4))
    assert draw(generator(0, "attack", 3)) != draw(generator(0, "order", 3))
    assert draw(generator(0, "attack", 3)) != draw(generator(1, "attack", 3))


def test_an_epoch_continues_its_streams_and_the_next_renews_them():
    random = RngStreams(3)
    random.start_epoch(5)
    first, second = draw(random("attack")), draw(random("attack"))
    assert (first, second) != (first, first)
    stream = generator(3, "attack", 5)
    assert [first, second] == [draw(stream), draw(stream)]
    random.start_epoch(6)
    assert draw(random("attack")) == draw(generator(3, "attack", 6))
    random.start_epoch(5)
    assert draw(random("attack")) == first


def test_seeds_for_code_that_has_no_generators():
    random = RngStreams(3)
    random.start_epoch(5)
    assert random.seed("transforms") == random.seed("transforms") == derive_seed(3, "transforms", 5)


def test_generators_on_the_host_are_their_own_where_the_device_is_another():
    random = RngStreams(3, "cpu")
    random.start_epoch(5)
    expected = generator(3, "forget", 5)
    assert draw(random.cpu("forget")) == draw(expected)
    assert draw(random.cpu("forget")) == draw(expected)
    elsewhere = RngStreams(3, "meta")  # a device without generators: the host's must not need it
    elsewhere.start_epoch(5)
    assert draw(elsewhere.cpu("forget")) == draw(generator(3, "forget", 5))


def test_one_purpose_does_not_move_another():
    alone, together = RngStreams(0), RngStreams(0)
    draw(together("order"))
    assert draw(alone("attack")) == draw(together("attack"))


@pytest.mark.parametrize("seed", [0, 1])
def test_global_state_is_neither_read_nor_changed(seed):
    expected = draw(generator(0, "attack"))
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    random = RngStreams(0)
    random.start_epoch(0)
    assert draw(random("attack")) == expected
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda: random.random(), "random"),
        (lambda: np.random.rand(), "NumPy"),
        (lambda: torch.rand(()), "torch"),
    ],
)
def test_draws_on_the_host_are_noticed_and_undone(draw, name):
    states = random.getstate(), repr(np.random.get_state()), torch.get_rng_state()
    message = f"the global generator of {name} decides on the host"
    with pytest.raises(HostRandomness, match=message), RngStreams(0).no_host_decisions():
        draw()
    assert (random.getstate(), repr(np.random.get_state())) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_no_draw_is_no_decision():
    streams = RngStreams(0)
    with streams.no_host_decisions():
        torch.rand((), generator=streams("attack"))
    with pytest.raises(KeyError), streams.no_host_decisions():
        raise KeyError
    streams.cpu("mine")
