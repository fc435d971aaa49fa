"""Read the JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from img2prompt.errors import UserError
from img2prompt.model.git_lfs import refuse_pointer


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; anything else is a UserError."""
    refuse_pointer(path)
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a checkpoint folder") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path} holds a {type(fields).__name__}; allowed: a JSON object")
    return fields
