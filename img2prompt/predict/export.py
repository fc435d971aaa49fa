"""A finished run -> export/: plain files that need nothing of this package.

`tower/` is a standard Hugging Face checkpoint of the vision tower, LoRA merged into its matrices
(`AutoModel.from_pretrained`, `AutoImageProcessor.from_pretrained`). `head.safetensors` maps
its `pooler_output` to the prompt embedding; its tensors are named as in `torch.nn.Linear(D, 384)`,
or, of a wide head, as in `torch.nn.Sequential(Linear(D, W, bias=False), BatchNorm1d(W), ReLU(),
Linear(W, 384))`. Float32 throughout.
"""

import tempfile
from pathlib import Path

import safetensors.torch
import torch

from img2prompt.artifact import Artifact, Draft
from img2prompt.config.predict import ExportConfig
from img2prompt.model.lora import merge_lora
from img2prompt.model.prompt_model import load_prompt_model
from img2prompt.workspace import Stage

TOWER = "tower"
HEAD = "head.safetensors"


def run(config: ExportConfig, trained: Artifact, shards: Artifact, out: str) -> Artifact:
    """Export a run; `shards` are those it was trained on, whose way of resizing is written too.

    Raises UserError for other shards than the run's, and when its base checkpoint is not there.
    """
    trained.require_input("shards", shards)
    draft = Draft.open(out, Stage.EXPORT, config, {"run": trained.fingerprint})
    if finished := draft.finished():
        return finished
    predictor = load_prompt_model(trained)
    assert predictor.tower is not None
    merge_lora(predictor.tower)
    with tempfile.TemporaryDirectory() as folder:
        predictor.tower.save(folder, torch.float32)
        predictor.tower.save_processor(folder, shards.config["fit"])
        for path in sorted(Path(folder).iterdir()):
            draft.write_bytes(f"{TOWER}/{path.name}", path.read_bytes())
    head = predictor.head.state_dict()
    draft.write_bytes(HEAD, safetensors.torch.save(head, metadata={"format": "pt"}))
    return draft.publish(parameters=sum(t.numel() for t in predictor.parameters()))
