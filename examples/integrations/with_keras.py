"""Keras 3 on torch, in mixed_float16: `compile` as always, then one line.

python examples/integrations/with_keras.py --steps 5
"""

from __future__ import annotations

import argparse
import os

os.environ["KERAS_BACKEND"] = "torch"  # before Keras is imported

import keras
import numpy as np

import gradscale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5, help="epochs")
    steps: int = parser.parse_args().steps

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential(
        [
            keras.layers.Input((16,)),
            keras.layers.Dense(64, activation="gelu"),
            keras.layers.Dense(16, dtype="float32"),
        ]
    )
    model.compile(optimizer=keras.optimizers.AdamW(1e-2), loss="mse")
    attachment = gradscale.attach(model, layerwise=True)
    print(attachment)
    inputs = np.random.randn(512, 16).astype("float32")
    model.fit(inputs, inputs.cumsum(1), epochs=steps, batch_size=64, verbose=2)
    print(attachment.scaler.counters)


if __name__ == "__main__":
    main()
