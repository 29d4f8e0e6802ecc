"""The split rule: a grid of ranks for each number of devices and passes."""

import pytest
from multitalk_pack.pipeline.errors import ConfigError
from multitalk_pack.pipeline.parallel import split
from multitalk_pack.pipeline.parallel.split import Layout, Split, choose_layout, share_sizes


def layout(num_ranks, num_passes, choice=Split.AUTO, heads=40, tokens=1560):
    return choose_layout(choice, num_ranks, num_passes, heads, tokens)


@pytest.mark.parametrize(
    ("num_ranks", "num_passes", "grid"),
    [
        (2, 2, (2, 1)),  # whole passes: the least to exchange
        (2, 3, (1, 2)),  # two turns of whole passes would leave a device idle for half of the second
        (3, 3, (3, 1)),
        (4, 3, (1, 4)),
        (4, 2, (2, 2)),
        (6, 3, (3, 2)),
        (2, 1, (1, 2)),  # distilled: one pass
        (8, 2, (2, 4)),
        (5, 3, (1, 5)),
    ],
)
def test_no_device_is_idle_and_whole_passes_come_first(num_ranks, num_passes, grid):
    assert layout(num_ranks, num_passes) == Layout(*grid)


@pytest.mark.parametrize("num_passes", [1, 2, 3])
@pytest.mark.parametrize("num_ranks", range(2, 9))
def test_every_pass_is_run_by_one_group_and_no_group_is_without(num_ranks, num_passes):
    grid = layout(num_ranks, num_passes)
    groups = [grid.passes_of(group, range(num_passes)) for group in range(grid.guidance)]
    assert sorted(sum(groups, ())) == list(range(num_passes))
    assert [grid.group_of(rank) for group in range(grid.guidance) for rank in grid.ranks_of(group)] == [
        group for group in range(grid.guidance) for _ in range(grid.tokens)
    ]
    step = Layout(3, 1)
    assert step.passes_of(2, ("cond",)) == ("cond",), "an idle group repeats the first pass"


def test_a_choice_is_kept():
    assert layout(2, 3, Split.GUIDANCE) == Layout(2, 1)
    assert layout(2, 2, Split.TOKENS) == Layout(1, 2)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((4, 3, Split.GUIDANCE), "3 guidance passes for 4 devices"),
        ((2, 1, Split.GUIDANCE), "1 guidance pass for 2 devices"),
        ((3, 1, Split.TOKENS, 2), "at most 2"),
        ((7, 1, Split.AUTO, 40, 6), "at most 6"),
    ],
)
def test_what_cannot_be_split_is_refused_with_the_limit(arguments, reason):
    with pytest.raises(ConfigError, match=reason):
        layout(*arguments)


def test_windows_splits_passes_and_refuses_tokens(monkeypatch):
    monkeypatch.setattr(split.sys, "platform", "win32")
    assert layout(2, 3) == Layout(2, 1)
    with pytest.raises(ConfigError, match="On Windows"):
        layout(2, 1)


@pytest.mark.parametrize("num_shares", [1, 2, 3, 7])
def test_shares_are_whole_and_even(num_shares):
    shares = share_sizes(20, num_shares)
    assert sum(shares) == 20 and max(shares) - min(shares) <= 1
