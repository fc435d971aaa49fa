"""A finished run -> export/: plain files that other programs load without this package.

`tower/` is a standard Hugging Face checkpoint of the vision tower, LoRA merged into its matrices
(`AutoModel.from_pretrained`, `AutoImageProcessor.from_pretrained`). transformers has no
EfficientNet-Lite: its tensors have the names of the package efficientnet-lite-pytorch instead. Nor
has it BLIP-2's vision tower alone: this package reads that export. Towers side by side are in
`tower/1`, `tower/2`, ...: the feature is theirs one after the other.
`head.safetensors` maps the feature (`pooler_output`) to the prompt embedding. Its tensors are named
as in `torch.nn.Linear(D, 384)`, or, for a wide head, as in `torch.nn.Sequential(Linear(D, W,
bias=False), BatchNorm1d(W), ReLU(), Linear(W, 384))`. Float32 throughout.
"""

import tempfile
from pathlib import Path

import safetensors.torch
import torch

from img2prompt.artifact import Artifact
from img2prompt.config.predict import ExportConfig
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.lora import merge_lora
from img2prompt.model.prompt_model import load_prompt_model
from img2prompt.predictors.base import PredictorSpec
from img2prompt.predictors.trained import TrainedRun
from img2prompt.workspace import Stage

TOWER = "tower"
HEAD = "head.safetensors"


def run(config: ExportConfig, predictor: PredictorSpec, shards: Artifact, out: str) -> Artifact:
    """Export a trained run; `shards`, on which it was trained, tell how pictures are resized.

    Raises UserError for a predictor that is not a trained run, for other shards than the run's,
    and when its base checkpoint is missing.
    """
    if not isinstance(predictor, TrainedRun):
        raise UserError(
            f"{predictor.name!r} cannot be exported: it has no tower and head of its own; allowed: "
            "a training run under runs/"
        )
    predictor.run.require_input("shards", shards)
    draft = Draft.open(out, Stage.EXPORT, config, {"run": predictor.run.fingerprint})
    if finished := draft.finished():
        return finished
    model = load_prompt_model(predictor.run)
    assert model.tower is not None
    merge_lora(model.tower)
    with tempfile.TemporaryDirectory() as folder:
        model.tower.save(folder, torch.float32)
        model.tower.save_processor(folder, shards.config["fit"])
        for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            draft.write_bytes(f"{TOWER}/{name}", path.read_bytes())
    head = model.head.state_dict()
    draft.write_bytes(HEAD, safetensors.torch.save(head, metadata={"format": "pt"}))
    return draft.publish(parameters=sum(t.numel() for t in model.parameters()))
