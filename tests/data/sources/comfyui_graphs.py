"""Small ComfyUI graphs in the form of its API."""

import json
from typing import Any

from img2prompt.data.sources.metadata import comfyui


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def sampled(positive: Any = ("p", 0), **nodes: dict[str, Any]) -> dict[str, Any]:
    """Save <- decode <- one sampler with this positive input, beside other nodes."""
    graph = {
        "save": node("SaveImage", images=("decode", 0)),
        "decode": node("VAEDecode", samples=("k", 0), vae=("model", 2)),
        "k": sampler(positive),
        "model": node("CheckpointLoaderSimple", ckpt_name="sd.safetensors"),
        "empty": node("EmptyLatentImage", width=8, height=8),
        "n": text("ugly, bad, " * 30),
    }
    return graph | nodes


def sampler(positive: Any, latent: Any = ("empty", 0), **changes: Any) -> dict[str, Any]:
    inputs = {"seed": 5, "steps": 20, "cfg": 7.5, "sampler_name": "euler", "negative": ("n", 0)}
    return node("KSampler", positive=positive, latent_image=latent, **inputs | changes)


def text(value: Any) -> dict[str, Any]:
    return node("CLIPTextEncode", text=value, clip=("model", 1))


def read(graph: dict[str, Any], workflow: Any = None) -> Any:
    return comfyui.read({"prompt": json.dumps(graph), "workflow": json.dumps(workflow or {})})


def prompt_of(graph: dict[str, Any]) -> str:
    return read(graph).prompt
