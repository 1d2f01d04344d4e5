"""Write the pictures that `vit-digits` was trained on: the digits of `digits:train`, each drawn a little differently.

    python zoo/digits.py --out digits --copies 16

A folder a class, PNG files of 8 x 8: the digit itself and copies that are turned by up to 12 degrees, shifted by up to
one pixel and scaled by up to a tenth. None of `digits:test` is read.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import affine_transform
from sklearn.datasets import load_digits

N_TRAIN = 1437
TURN, SHIFT, SCALE = np.deg2rad(12), 1.0, 0.1


def redrawn(picture: NDArray[np.float64], draw: np.random.Generator) -> NDArray[np.float64]:
    """[8, 8] picture, turned, shifted and scaled about its middle."""
    angle, scale = draw.uniform(-TURN, TURN), 1 + draw.uniform(-SCALE, SCALE)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    middle = np.array([3.5, 3.5])
    offset = middle - matrix @ (middle + draw.uniform(-SHIFT, SHIFT, 2))
    drawn: NDArray[np.float64] = affine_transform(picture, matrix, offset, order=1)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    digits, draw = load_digits(), np.random.default_rng(arguments.seed)
    for index in range(N_TRAIN):
        folder = arguments.out / str(digits.target[index])
        folder.mkdir(parents=True, exist_ok=True)
        picture = digits.images[index]
        for copy in range(arguments.copies + 1):
            shown = redrawn(picture, draw) if copy else picture
            grey = np.round(np.clip(shown, 0, 16) * (255 / 16)).astype(np.uint8)
            Image.fromarray(grey).save(folder / f"{index:04d}-{copy:02d}.png")
    print(f"{N_TRAIN * (arguments.copies + 1)} pictures in {arguments.out}")


if __name__ == "__main__":
    main()
