"""Pictures built after public bug reports, beside the checkout: what each must give."""

import csv
from pathlib import Path

import pytest

from img2prompt.data.sources.metadata.base import NoPrompt
from img2prompt.data.sources.metadata.programs import read_metadata

FOX = "a red fox in snow"
NOVELAI = "1girl, red scarf, snow"
PROMPTS = {
    "a1111-hires-prompt": "RAW photo,\nworld\nsolarpunk,\n(high detail:1.5)",
    "civitai-little-endian-english": "score_9, a red fox,\nsnow",
    "comfy-any-switch": FOX,
    "comfy-clownshark": FOX,
    "comfy-conditioning-concat": "a red fox, deep snow, dusk",
    "comfy-conditioning-switch": "a blue whale in the sky",
    "comfy-easy-positive": FOX,
    "comfy-prompt-stash": FOX,
    "comfy-sampler-custom-advanced": FOX,
    "comfy-show-text": FOX,
    "comfy-text-switch": "a blue whale in the sky",
    "comfy-trigger-words": "ukiyo-e woodblock, a fox in snow",
    "draw-things": "a lighthouse (at dusk) [near the cliffs]",
    "easy-diffusion-jpeg": FOX,
    "fooocus-mre": "halloween witch, clean outline",
    "mochi-diffusion": "woman with long red hair holding a tabby cat, white scarf",
    "novelai-stealth": NOVELAI,
    "novelai-v4-characters": "two people in a park, autumn, girl, red scarf, reading, boy, "
    "green hat, feeding ducks",
    "novelai-webp": NOVELAI,
    "ruinedfooocus": "a spaceship inside an abandoned barn",
    "swarmui-jpeg": "a red fox in snow ❄",
}
REASONS = {
    "a1111-unresolved-template": "computed prompt: the picture holds only a template",
    "camera-default-caption": "no prompt: 'ImageDescription' is a default caption",
    "comfy-list-in-subgraph": "undecided prompt: node 30:21 (CR Text Cycler) returns a list",
    "comfy-random-prompt": "computed prompt: node 20 (DPRandomGenerator)",
    "comfy-stable-wildcards": "computed prompt: node 20 (Stable Wildcards)",
}


@pytest.mark.parametrize("case", [*PROMPTS, *REASONS])
def test_a_reported_picture(case: str, shared_data: Path) -> None:
    folder = shared_data.parent / "cases"
    if not (folder / "data.csv").exists():
        pytest.skip(f"needs the reported pictures in {folder}")
    with open(folder / "data.csv", newline="", encoding="utf-8") as file:
        [path] = [
            folder / "data" / row["input"] for row in csv.DictReader(file) if row["case"] == case
        ]
    for picture in sorted(path.iterdir()) if path.is_dir() else [path]:
        with open(picture, "rb") as stream:
            if case in PROMPTS:
                assert read_metadata(stream).prompt == PROMPTS[case]
                continue
            with pytest.raises(NoPrompt) as error:
                read_metadata(stream)
        assert str(error.value).startswith(REASONS[case])
