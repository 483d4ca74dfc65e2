"""Torch generators from named streams (the streams themselves are tested wherever their independence matters)."""

import pytest

from normkit.rng import generator, stream

torch = pytest.importorskip("torch")


def test_a_torch_generator_goes_by_seed_and_path():
    def first(*path):
        return torch.randn(4, generator=generator(*path)).tolist()

    assert first(0, "a", 1) == first(0, "a", 1)
    assert len({tuple(first(*path)) for path in ((0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1))}) == 4
    assert generator(3, "x").initial_seed() == int(stream(3, "x").integers(2**63))


def test_it_leaves_the_global_stream_alone_and_refuses_what_a_stream_refuses():
    before = torch.random.get_rng_state()
    torch.randn(3, generator=generator(0, "a"))
    assert torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(ValueError, match="seed must be a non-negative integer"):
        generator(-1, "a")
