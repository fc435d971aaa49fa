"""Predict the prompt behind a generated picture, on Ray."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from img2prompt.notebook import LoadedPredictor


def load(out: str, run: str = "lora") -> "LoadedPredictor":
    """Load a predictor to use it in this process, without Ray.

        import img2prompt
        answers = img2prompt.load("out/demo", run="lora").predict(["picture.png"])
        answers.vectors  # (1, 384)

    `out` is the `--out` of the jobs; `run` is a name under its `runs/` (a training run,
    a blend or a calibrated run), `neighbours` or `mean`.

    Raises:
        UserError: the run or its shards are absent or unfinished, or its tower is missing.
    """
    from img2prompt.notebook import load_predictor  # torch takes seconds to import

    return load_predictor(out, run)
