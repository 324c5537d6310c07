"""Keras 3 on torch: real models, `fit`, saving and loading, on the CPU."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

os.environ.setdefault("KERAS_BACKEND", "torch")  # before Keras is imported

import gradscale
from hosts import host

keras = host("keras")


@pytest.fixture(autouse=True)
def half_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy(before)


def model_of(optimizer=None):
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8,)),
            layers.Dense(32, activation="gelu"),
            layers.Dense(8, dtype="float32"),
        ]
    )
    model.compile(optimizer=optimizer or keras.optimizers.Adam(1e-2), loss="mse")
    return model


def data(rows=64, bad=None):
    x = np.random.RandomState(0).randn(rows, 8).astype("float32")
    y = x.cumsum(1)
    if bad is not None:
        y[bad] = np.inf
    return x, y


def fit(model, epochs=1, **settings):
    return model.fit(*data(**settings), epochs=epochs, batch_size=8, verbose=0, shuffle=False)


def test_a_compiled_model_trains_with_ours_as_with_its_own():
    own = model_of()
    fit(own, 2)
    keras.utils.set_random_seed(0)
    model = model_of()
    attachment = gradscale.attach(model, init_scale=2.0**15)
    fit(model, 2)
    # Powers of two: dividing by the scale or multiplying by its reciprocal are the same bits.
    for ours, theirs in zip(model.get_weights(), own.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)
    assert attachment.scaler.counters.steps == 16


def test_bad_data_costs_a_step_and_no_scale_and_a_plan_forms():
    model = model_of()
    attachment = gradscale.attach(model, layerwise=True)
    fit(model, bad=20)
    counters = attachment.scaler.counters
    assert counters.reasons == {"nonfinite_loss": 1} and counters.steps == 8
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert attachment.scaler.layerwise.tracks.latest is not None
    assert float(model.optimizer.dynamic_scale) == attachment.scaler.get_scale()


def test_a_saved_model_goes_on_at_its_scale(tmp_path):
    model = model_of()
    gradscale.attach(model, init_scale=256.0, growth_interval=5)
    fit(model)
    assert float(model.optimizer.dynamic_scale) == 512.0 and int(model.optimizer.step_counter) == 3
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    attachment = gradscale.attach(again, growth_interval=5)
    assert attachment.scaler.get_scale() == 512.0
    fit(again)
    fit(model)
    for one, other in zip(again.get_weights(), model.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert float(again.optimizer.dynamic_scale) == float(model.optimizer.dynamic_scale) == 2048.0


def test_weights_alone_bring_the_scale_back(tmp_path):
    from gradscale.integrations.keras import ScaledOptimizer

    model = model_of(ScaledOptimizer(keras.optimizers.Adam(1e-2), init_scale=64.0))
    fit(model)
    model.save_weights(tmp_path / "m.weights.h5")
    again = model_of(ScaledOptimizer(keras.optimizers.Adam(1e-2)))
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "m.weights.h5")
    assert again.optimizer.scaler.get_scale() == 64.0


def test_detaching_brings_kerass_own_back():
    model = model_of()
    before = model.optimizer
    attachment = gradscale.attach(model)
    attachment.detach()
    assert model.optimizer is before
    fit(model)


def test_float32_and_uncompiled_models_are_refused():
    uncompiled = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(8)])
    with pytest.raises(RuntimeError, match=r"model.compile"):
        gradscale.attach(uncompiled)
    keras.config.set_dtype_policy("float32")
    with pytest.raises(ValueError, match=r"set_dtype_policy\('mixed_float16'\)"):
        gradscale.attach(model_of())


def test_another_backend_is_refused(monkeypatch):
    from gradscale.integrations.keras import ScaledOptimizer

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match=r"Keras runs on jax.*KERAS_BACKEND=torch"):
        ScaledOptimizer(keras.optimizers.SGD())


def test_a_device_is_found_without_being_told():
    assert gradscale.attach(model_of()).scaler._device in ("cpu", torch.get_default_device().type)
