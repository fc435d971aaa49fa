"""index/ -> clean/: the rows that are fit to learn from. One `rows-*.parquet` and one
`rejected-*.parquet`, with reasons, for each file of the index.

Only text and numbers are read, no picture. Two pictures of one prompt are both kept; of one picture
only the first fit row is, because with two prompts it could land in two splits. Memory is that of
one file of the index and of a HashedMap. The result depends on the config, the index and the list
of blocked words alone; a killed run starts over, because every row depends on those before it.
"""

import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from img2prompt.artifact import Artifact
from img2prompt.config.prepare import CleanConfig
from img2prompt.data.hashed import HashedMap
from img2prompt.data.images import size_reason
from img2prompt.data.sources.rows import Rejected, Row, count_kinds, rejected_table
from img2prompt.data.text.normalise import normalise, prompt_id
from img2prompt.data.text.rules import PromptRules, read_blocked
from img2prompt.distributed import metrics
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.text import count_unknown
from img2prompt.workspace import Stage

logger = logging.getLogger(__name__)

SCHEMA = pa.schema([("id", pa.string()), ("prompt_id", pa.string()), ("prompt", pa.string())])

_PROMPTS_KEPT = 1 << 16  # judgements; the pictures of a prompt often stand close together


def check(config: CleanConfig) -> None:
    """Check settings before the index is made.

    Raises:
        UserError: the blocked words cannot be read, or a language is unknown.
    """
    _Judge(config, read_blocked(config.blocked_words), encoder="")


def run(config: CleanConfig, index: Artifact, out: str, encoder: str = "") -> Artifact:
    """Judge every row of the index; counts `rows` and `rejected` by kind.

    Args:
        config: the rules.
        index: the rows.
        out: folder of the result.
        encoder: folder of the prompt encoder, whose tokens `max_unknown` concerns; empty: the
            installed package.

    Raises:
        UserError: no row is fit, the blocked words or the encoder cannot be read, or a language is
            unknown.
    """
    blocked = read_blocked(config.blocked_words)
    inputs = {"index": index.fingerprint}
    if blocked:
        inputs["blocked_words"] = hashlib.sha256(blocked).hexdigest()[:16]
    if encoder and config.max_unknown < 1:
        inputs["encoder"] = encoder
    draft = Draft.open(out, Stage.CLEAN, config, inputs, renewable=True)
    if finished := draft.finished():
        return finished
    judge = _Judge(config, blocked, encoder)
    rows, kinds = 0, Counter[str]()
    for name in index.names("rows"):
        judged = judge.judge(index.read_table(name).to_pylist())
        fit = [row for row in judged if not isinstance(row, Rejected)]
        rejected = [row for row in judged if isinstance(row, Rejected)]
        draft.write_table(name, pa.Table.from_pylist(fit, schema=SCHEMA))
        draft.write_table(name.replace("rows", "rejected"), rejected_table(rejected))
        rows += len(fit)
        kinds.update(count_kinds(rejected))
    logger.info("clean: %d rows, rejected %s", rows, dict(kinds))
    metrics.count_rejected(Stage.CLEAN, kinds)
    if not rows:
        raise UserError(f"no row is fit: {dict(kinds)}; change the limits under --clean")
    return draft.publish(rows=rows, rejected=dict(kinds.most_common()))


class _Judge:
    """Judges rows in their order."""

    def __init__(self, config: CleanConfig, blocked: bytes, encoder: str) -> None:
        self._config, self._encoder = config, encoder
        self._rules = PromptRules(config, blocked)
        self._text_reasons: dict[str, str | None] = {}
        self._pictures = HashedMap()

    def judge(self, rows: Sequence[Row]) -> list[Row | Rejected]:
        """Return each row as a row of SCHEMA, or as a rejected one."""
        prompts = [normalise(row["prompt"]) for row in rows]
        self._judge_texts(prompts)
        reasons = [
            self._text_reasons[prompt] or _picture_reason(row, self._config)
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        self._reject_repeats(rows, prompts, reasons)
        return [
            Rejected(row["id"], reason)
            if reason
            else {"id": row["id"], "prompt_id": prompt_id(prompt), "prompt": prompt}
            for row, prompt, reason in zip(rows, prompts, reasons, strict=True)
        ]

    def _judge_texts(self, prompts: Sequence[str]) -> None:
        """Set the reasons of prompts that were not judged lately."""
        if len(self._text_reasons) > _PROMPTS_KEPT:
            self._text_reasons.clear()
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._text_reasons]
        count = functools.partial(count_unknown, folder=self._encoder)
        self._text_reasons |= zip(new, self._rules.reasons(new, count), strict=True)

    def _reject_repeats(
        self, rows: Sequence[Row], prompts: Sequence[str], reasons: list[str | None]
    ) -> None:
        """Set the reasons of rows without one whose picture was in a fit row before."""
        fit = [number for number, reason in enumerate(reasons) if not reason]
        pictures = [f"{rows[number]['uri']}\0{rows[number]['member']}" for number in fit]
        new, same = self._pictures.add(pictures, [prompts[number] for number in fit])
        for at in np.flatnonzero(~new):
            row = rows[fit[at]]
            picture = f"{row['uri']} {row['member']}".strip()
            if same[at]:
                reason = f"repeated row: {picture} with this prompt came before"
            else:
                reason = f"contradicting prompt: {picture} came before with another prompt"
            reasons[fit[at]] = reason


def _picture_reason(row: Row, config: CleanConfig) -> str | None:
    width, height = row["width"], row["height"]
    if reason := size_reason(width, height, config.max_megapixels, config.min_side):
        return f"picture size: {reason}"
    if config.max_side and max(width, height) > config.max_side:
        allowed = f"{config.max_side} or less on the longer side"
        return f"picture size: picture is {width} x {height} pixels; allowed: {allowed}"
    score = row.get("nsfw")
    if score is not None and score > config.max_nsfw:
        return f"nsfw: score {score:g}; allowed: at most {config.max_nsfw:g}"
    return None
