"""Blends and splits: what is read, what is refused, and edges of splits that are megatron-core's."""

from __future__ import annotations

import math

import pytest
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)

from megatron_kd.config.blend import SPLITS, Blend, SplitData, parse_blend, parse_split, required, split_data
from megatron_kd.config.problem import Problem
from megatron_kd.config.sections import DatasetConfig
from megatron_kd.errors import ConfigError


@pytest.mark.parametrize(
    ("items", "blend"),
    [
        (["a"], Blend(["a"])),
        (["a", "b", "a"], Blend(["a", "b", "a"])),
        ([0.7, "a", 0.3, "b"], Blend(["a", "b"], [0.7, 0.3])),
        ([7, "a", "3e-1", "b"], Blend(["a", "b"], [7.0, 0.3])),
        ([1, "a"], Blend(["a"], [1.0])),
        ([0.5, "./7"], Blend(["./7"], [0.5])),
    ],
)
def test_a_blend_is_prefixes_or_weights_and_prefixes(items: list[str | float], blend: Blend) -> None:
    assert parse_blend(items, "x") == blend


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([], "is empty"),
        ([0.5, "a", "b"], "a weight before every prefix"),
        (["a", 0.5], "a weight before every prefix"),
        ([0.5, 0.5], "a weight before every prefix"),
        ([0.5, "0"], "write a prefix that is a number as ./7"),
        ([0.5, "a", 0.5], "a weight before every prefix"),
        ([0.0, "a"], "leave out data of weight 0"),
        ([0.5, "a", 0, "b"], "leave out data of weight 0"),
        ([-0.5, "a"], "greater than 0"),
        ([math.inf, "a"], "finite"),
        (["nan", "a"], "finite"),
        ([1e308, "a", 1e308, "b"], "finite"),
    ],
)
def test_other_blends_are_refused(items: list[str | float], told: str) -> None:
    problem = parse_blend(items, "dataset.data_path")
    assert isinstance(problem, Problem)
    assert str(problem).startswith("dataset.data_path=[") and told in str(problem)


@pytest.mark.parametrize(
    ("text", "shares", "shown"),
    [
        ("949,50,1", (949.0, 50.0, 1.0), "949,50,1"),
        ("90,10", (90.0, 10.0, 0.0), "90,10,0"),
        ("100", (100.0, 0.0, 0.0), "100,0,0"),
        ("1e2,5,1", (100.0, 5.0, 1.0), "100,5,1"),
        (" 0.7 , .25,5.e-2", (0.7, 0.25, 0.05), "0.7,0.25,0.05"),
        ("0,1e-7,0", (0.0, 1e-7, 0.0), "0,0.0000001,0"),
    ],
)
def test_a_split_is_one_to_three_shares(text: str, shares: tuple[float, float, float], shown: str) -> None:
    split = required(parse_split(text))
    assert split.shares == shares
    assert str(split) == shown
    assert parse_split(shown) == split


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "1,", "1,,1", "1 2", "1;2;3", "1,2,3,4", "0", "0,0,0", "-1,2", "1,-0,1", "a,b,c", "nan", "inf,1",
     "1e309,1", "1e308,1e308,1e308", "1_0,1", "0x9,1", "\N{FULLWIDTH DIGIT ONE},1", "9:1", "90%,10%", "[9,1]"],
)  # fmt: skip
def test_other_splits_are_refused(text: str) -> None:
    problem = parse_split(text)
    assert isinstance(problem, Problem)
    assert str(problem).startswith("dataset.split=") and "three finite numbers" in str(problem)
    assert problem.cure == "write such as 949,50,1"


@pytest.mark.parametrize(
    "text", ["949,50,1", "90,10", "1", "0.3,0.3,0.4", "0,1,0", "1,0,3", "0.1,0.7,0.2", "1e2,5e-1,7"]
)
def test_a_split_has_the_part_that_megatron_core_gives_it(text: str) -> None:
    split = required(parse_split(text))
    matrix = convert_split_vector_to_split_matrix(parse_and_normalize_split(str(split)))
    for name, expected in zip(SPLITS, matrix, strict=True):
        first, last = split.part(name)
        assert expected == (None if split.share(name) == 0 else (first, last))
        assert first < last or split.share(name) == 0


def test_a_split_is_read_from_its_part_of_all_data_or_from_a_list_of_its_own() -> None:
    shared = DatasetConfig(data_path=["a"], split="9,1")
    assert split_data(shared, "train") == SplitData("train", "dataset.data_path", Blend(["a"]), (0.0, 0.9))
    assert split_data(shared, "valid") == SplitData("valid", "dataset.data_path", Blend(["a"]), (0.9, 1.0))
    own = DatasetConfig(valid_data_path=[1, "a"], split="unused")
    assert split_data(own, "valid") == SplitData("valid", "dataset.valid_data_path", Blend(["a"], [1.0]), (0.0, 1.0))
    assert split_data(own, "train") is None


def test_what_is_refused_is_named_with_its_value() -> None:
    with pytest.raises(ConfigError, match=r"^dataset\.train_data_path=\[0, a\]: has weights"):
        split_data(DatasetConfig(train_data_path=[0, "a"]), "train")
    with pytest.raises(ConfigError, match=r"^dataset\.split='9,x': must be"):
        split_data(DatasetConfig(data_path=["a"], split="9,x"), "train")
