"""Prompts that say left or right: a mirrored picture is no longer what they describe."""

import pyarrow as pa
import pyarrow.compute as pc

SIDES = r"\b(left|right)(s|most|ward|wards|side|hand|handed)?\b"


def mentions_side(prompts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return for each prompt whether it has the word left or right, or one made of it."""
    options = pc.MatchSubstringOptions(SIDES, ignore_case=True)
    return pc.call_function("match_substring_regex", [prompts], options)
