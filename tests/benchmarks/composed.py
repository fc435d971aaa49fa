"""Compare composed prompts with the nearest known prompt, and with one-at-a-time greedy search.

Held-out prompts stand for pictures: a picture's predicted vector is the true vector plus noise, up
to a cosine such as a trained model reaches. `--vectors FILE` takes a table of real predictions
instead, with the columns `prompt` and `vector`. The bank is the other prompts, without near
duplicates of the held-out ones.

The greedy search is the chain of CLIP Interrogator (github.com/pharmapsychotic/clip-interrogator),
written anew for MiniLM: for one picture at a time, the `--shortlist` phrases nearest to the vector
are each appended to the nearest prompt and encoded, in batches; the best is kept, and so on until
the cosine does not rise. Ours composes all pictures at once.

    python tests/benchmarks/composed.py
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import tyro

from img2prompt import cli
from img2prompt.data.vectors import matrix, unit_rows
from img2prompt.model.text import LONGEST, PromptEncoder
from img2prompt.predictors.compose import SMALLEST_GAIN, Composer
from img2prompt.predictors.neighbours import NearestPrompts
from img2prompt.predictors.phrases import read_phrases

REAL = Path(__file__).parents[3] / "shared" / "data" / "prompts"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Inputs and sizes of the comparison."""

    prompts: Path = REAL
    """Folder of real_prompts.txt and flavors.txt."""
    vectors: str = ""
    """Parquet file of predictions for pictures whose prompts are known; empty: noisy vectors."""
    bank: int = 4000
    """Known prompts."""
    phrases: int = 20_000
    """Phrases of the vocabulary, the first of flavors.txt."""
    pictures: int = 128
    greedy_pictures: int = 8
    """Pictures that the greedy search composes, the first ones."""
    shortlist: int = 2048
    """Phrases that the greedy search tries for a picture (CLIP Interrogator's number)."""
    candidates: int = 16
    cosine: float = 0.7
    """Cosine of the noisy vectors with the true ones."""
    duplicate: float = 0.85
    """Cosine from which a known prompt counts as a copy of a held-out one."""
    threads: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Material:
    """Pictures with known prompts, and the bank."""

    truths: np.ndarray
    """Vectors (N, 384) of the true prompts."""
    vectors: np.ndarray
    """Predicted vectors (N, 384)."""
    bank: NearestPrompts
    phrases: list[str]


def collect(options: Options, encoder: PromptEncoder) -> Material:
    """Return the held-out pictures, and the prompts that are no copies of theirs."""
    rng = np.random.default_rng(options.seed)
    lines = (options.prompts / "real_prompts.txt").read_text().splitlines()
    prompts = sorted({" ".join(line.split()) for line in lines} - {""})
    rng.shuffle(prompts)
    if options.vectors:
        table = pq.read_table(options.vectors).slice(0, options.pictures)
        truths = encoder.encode(table["prompt"].to_pylist())
        vectors = matrix(table["vector"])
    else:
        truths = encoder.encode(prompts[: options.pictures])
        vectors = noisy(truths, options.cosine, rng)
        prompts = prompts[options.pictures :]
    known = prompts[: options.bank]
    known_vectors = encoder.encode(known)
    new = (known_vectors @ truths.T).max(axis=1) < options.duplicate
    bank = NearestPrompts(known_vectors[new], [p for p, own in zip(known, new, strict=True) if own])
    phrases = read_phrases([str(options.prompts / "flavors.txt")])[: options.phrases]
    return Material(truths, vectors, bank, phrases)


def noisy(truths: np.ndarray, cosine: float, rng: np.random.Generator) -> np.ndarray:
    """Return unit vectors at one cosine from each of `truths`, towards mixtures of the others.

    Errors of a model lie in the directions in which prompts differ, not in all directions alike.
    """
    mixed = rng.normal(size=(len(truths), len(truths))) @ (truths - truths.mean(axis=0))
    across = unit_rows(mixed - np.sum(mixed * truths, axis=1, keepdims=True) * truths)
    return (cosine * truths + np.sqrt(1 - cosine**2) * across).astype(np.float32)


def greedy(
    vector: np.ndarray,
    start: str,
    phrases: list[str],
    phrase_vectors: np.ndarray,
    shortlist: int,
    encoder: PromptEncoder,
) -> tuple[str, int]:
    """Return the prompt for one vector (384,) of unit length, and the texts that were encoded."""
    order = np.argsort(-(phrase_vectors @ vector), kind="stable")[:shortlist]
    remaining = [phrases[row] for row in order]
    text, best, encoded = start, float(encoder.encode([start])[0] @ vector), 1
    while remaining:
        texts = [f"{text}, {phrase}" for phrase in remaining]
        tokens = encoder.tokenise(texts)
        cosines = encoder.encode_tokens(tokens) @ vector
        encoded += len(texts)
        cosines[tokens.cut] = -1
        row = int(np.argmax(cosines))
        if cosines[row] <= best + SMALLEST_GAIN:
            break
        text, best = texts[row], float(cosines[row])
        del remaining[row]
    return text, encoded


def run(options: Options) -> dict[str, tuple[float, float, float]]:
    """Print the comparison; return cosine to the vector, to the truth, and prompts/s by method.

    All are over the pictures of the greedy search.
    """
    torch.set_num_threads(options.threads)
    encoder = PromptEncoder()
    material = collect(options, encoder)
    unit = unit_rows(material.vectors).astype(np.float32)
    nearest = [matches[0][0] for matches in material.bank.search(unit, 1)]
    composer = Composer(encoder, material.phrases, options.candidates)
    began = time.perf_counter()
    composed = [result.prompt for result in composer.compose(unit, nearest)]
    ours = len(unit) / (time.perf_counter() - began)

    phrase_vectors, few = encoder.encode(material.phrases), options.greedy_pictures
    began = time.perf_counter()
    chains = [
        greedy(
            unit[row], nearest[row], material.phrases, phrase_vectors, options.shortlist, encoder
        )
        for row in range(few)
    ]
    theirs = few / (time.perf_counter() - began)
    texts = {"nearest": nearest, "composed": composed, "greedy": [text for text, _ in chains]}
    rates = {"nearest": np.nan, "composed": ours, "greedy": theirs}
    result, rows = {}, []
    for name, prompts in texts.items():
        vectors = encoder.encode(prompts)
        assert not encoder.tokenise(prompts).cut.any(), f"at most {LONGEST} tokens"
        near = np.sum(vectors * unit[: len(prompts)], axis=1)
        true = np.sum(vectors * material.truths[: len(prompts)], axis=1)
        result[name] = (float(near[:few].mean()), float(true[:few].mean()), rates[name])
        rows.append([name, few, *(f"{value:.4f}" for value in result[name])])
        if len(prompts) > few:
            rows.append([name, len(prompts), f"{near.mean():.4f}", f"{true.mean():.4f}", ""])
    cli.show(
        f"{len(unit)} vectors, {len(material.phrases)} phrases",
        ["prompts", "pictures", "cosine to the vector", "cosine to the truth", "prompts/s"],
        rows,
    )
    print(f"composed against greedy: {ours / theirs:.1f} times the prompts/s")
    print(f"texts encoded by greedy: {np.mean([n for _, n in chains]):.0f} a prompt")
    for row in range(min(3, few)):
        print("".join(f"\n  {name:8}: {prompts[row]}" for name, prompts in texts.items()))
    return result


if __name__ == "__main__":
    run(tyro.cli(Options, description=__doc__))
