import numpy as np
import torch
from torch import Tensor, nn

from img2prompt.model.views import VIEWS, ViewVectors


def random_pixels(rows: int = 3) -> Tensor:
    return torch.randint(0, 256, (rows, 4, 6, 3), dtype=torch.uint8)


def test_a_flip_swaps_left_and_right() -> None:
    pixels = random_pixels()
    flipped = VIEWS["flip"](pixels)
    assert flipped.shape == pixels.shape
    np.testing.assert_array_equal(flipped.numpy(), pixels.numpy()[:, :, ::-1])
    assert not torch.equal(flipped, pixels)
    assert VIEWS["plain"](pixels) is pixels


def test_vectors_of_one_view_come_before_those_of_the_next() -> None:
    class LeftColumn(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels[:, 0, 0].double()

    pixels = random_pixels()
    vectors = ViewVectors(LeftColumn(), ["flip", "plain"])(pixels)["vector"]
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[:, :3], pixels[:, 0, -1])
    np.testing.assert_array_equal(vectors[:, 3:], pixels[:, 0, 0])
