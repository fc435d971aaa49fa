import csv
import json
from io import BytesIO
from pathlib import Path

import pytest
from metadata_pictures import exif_picture, png, with_xmp
from PIL import Image

from img2prompt.data.sources.metadata.base import Metadata, NoPrompt
from img2prompt.data.sources.metadata.programs import read_metadata
from img2prompt.data.text.normalise import normalise

SETTINGS = (
    "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 18446744073709551, Size: 512x512, "
    'Lora hashes: "a: 0f, Seed: 3", Hires prompt: "Steps: 9, \\"x\\", y", Version: v1.10'
)
A1111 = f"a cat,\non grass: (red:1.2)\n\nNegative prompt: ugly,\nbad\n{SETTINGS}"
A1111_METADATA = Metadata(
    prompt="a cat,\non grass: (red:1.2)",
    negative="ugly,\nbad",
    generator="automatic1111",
    seed=18446744073709551,
    steps=20,
    cfg=7.5,
    sampler="Euler a",
)
GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 5,
            "steps": 20,
            "cfg": 8,
            "sampler_name": "euler",
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 8, "height": 8}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly " * 40, "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
}
GRAPH_METADATA = Metadata("a fox", ("ugly " * 40).strip(), "comfyui", 5, 20, 8.0, "euler")


def test_automatic1111_in_png() -> None:
    assert read_metadata(png(parameters=A1111)) == A1111_METADATA


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + A1111.encode("utf-16-be"),
        b"UNICODE\0" + A1111.encode("utf-16-le"),
        b"UNICODE\0" + A1111.encode("utf-16"),
        b"UNICODE\0" + A1111.encode(),
        b"ASCII\0\0\0" + A1111.encode(),
        bytes(8) + A1111.encode(),
        A1111.encode(),
    ],
    ids=["utf-16-be", "utf-16-le", "mark", "utf-8", "ascii", "undefined", "none"],
)
def test_automatic1111_in_exif(form: str, comment: bytes) -> None:
    assert read_metadata(exif_picture(form, {}, comment)) == A1111_METADATA


def test_letters_of_other_scripts_in_exif() -> None:
    text = f"кошка 彩虹星系 café\n{SETTINGS}"
    for coded in (text.encode("utf-16-be"), text.encode("utf-16-le"), text.encode()):
        metadata = read_metadata(exif_picture("JPEG", {}, b"UNICODE\0" + coded))
        assert metadata.prompt == "кошка 彩虹星系 café"


@pytest.mark.parametrize(
    ("text", "prompt", "negative", "steps"),
    [
        (f"a cat\n{SETTINGS}", "a cat", "", 20),
        (f"a cat\r\nNegative prompt: bad\r\n{SETTINGS}\r\nTemplate: x", "a cat", "bad", 20),
        ("Steps: to heaven, a stair\nSteps: 7, Seed: 1", "Steps: to heaven, a stair", "", 7),
        ("a\nSteps: 3, Seed: 1\nb\nSteps: 7, Seed: 1", "a\nSteps: 3, Seed: 1\nb", "", 7),
        ("a cat\nNegative prompt: bad", "a cat", "bad", None),
    ],
)
def test_automatic1111_lines(text: str, prompt: str, negative: str, steps: int | None) -> None:
    metadata = read_metadata(png(parameters=text))
    assert (metadata.prompt, metadata.negative, metadata.steps) == (prompt, negative, steps)


def test_a_template_that_was_not_filled_in() -> None:
    template = "art, __lighting__, {red|blue}"
    settings = f'Steps: 25, Seed: 3, Template: "{template}", Negative Template: "low"'
    with pytest.raises(NoPrompt, match=r"^computed prompt: the picture holds only a template"):
        read_metadata(png(parameters=f"{template}\nNegative prompt: low\n{settings}"))
    assert read_metadata(png(parameters=f"art, dim, red\n{settings}")).prompt == "art, dim, red"
    # Without such a template the generator itself was given the braces.
    assert read_metadata(png(parameters=f"{template}\n{SETTINGS}")).prompt == template
    plain = 'a fox\nSteps: 25, Seed: 3, Template: "a fox"'
    assert read_metadata(png(parameters=plain)).prompt == "a fox"


def test_numbers_out_of_range_are_left_out() -> None:
    text = f"a\nSteps: 20, Seed: {2**64 - 1}, CFG scale: nan, Sampler: x"
    assert read_metadata(png(parameters=text)) == Metadata(
        "a", generator="automatic1111", steps=20, sampler="x"
    )
    text = f"a\nSteps: 20, Seed: {2**63 - 1}, CFG scale: 1e999"
    assert read_metadata(png(parameters=text)).seed == 2**63 - 1
    graph = json.dumps(GRAPH).replace('"seed": 5', f'"seed": {2**64 - 1}')
    assert read_metadata(png(prompt=graph)).seed is None


def test_comfyui_in_png_and_exif() -> None:
    text = json.dumps(GRAPH)
    assert read_metadata(png(prompt=text, workflow="{}")) == GRAPH_METADATA
    tags = {0x0110: f"prompt:{text}", 0x010F: 'workflow:{"nodes": []}'}
    assert read_metadata(exif_picture("WEBP", tags)) == GRAPH_METADATA
    tags = {0x010E: 'Workflow: {"nodes": []}', 0x010F: f"Prompt: {text}"}
    assert read_metadata(exif_picture("JPEG", tags)) == GRAPH_METADATA
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    assert read_metadata(exif_picture("JPEG", {}, comment)) == GRAPH_METADATA


def test_invokeai() -> None:
    settings = {"seed": 7, "steps": 30, "cfg_scale": 7.5}
    expected = Metadata("a cat", "ugly", "invokeai", 7, 30, 7.5, "euler_a")
    new = {"positive_prompt": "a cat", "negative_prompt": "ugly", "scheduler": "euler_a"}
    assert read_metadata(png(invokeai_metadata=json.dumps(new | settings))) == expected
    parts = [{"prompt": "a cat [ugly]", "weight": 1.0}]
    image = settings | {"prompt": parts, "sampler": "euler_a"}
    assert read_metadata(png(sd_metadata=json.dumps({"image": image}))) == expected
    image["prompt"] = "a [ugly] cat"
    assert read_metadata(png(sd_metadata=json.dumps({"image": image}))) == expected
    for line in (
        '"a cat [ugly]" -s 30 -S 7 -W 512 -H 512 -C 7.5 -A euler_a',
        '"a cat [ugly]" -s30 -S7 -C7.5 -Aeuler_a -v0.1',
        "a cat [ugly] -s 30 -S 7 -C 7.5 -A euler_a",
    ):
        assert read_metadata(png(Dream=line)) == expected
    assert (
        read_metadata(png(Dream='"the "best" cat - ever" -S 7')).prompt == 'the "best" cat - ever'
    )
    assert read_metadata(png(Dream='"a cat"')) == Metadata("a cat", generator="invokeai")


@pytest.mark.parametrize("name", ["prompt", "parameters", "Description"])
def test_plain_text(name: str) -> None:
    assert read_metadata(png(**{name: " a café \n"})) == Metadata("a café")
    assert read_metadata(png(**{name: "彩虹"})) == Metadata("彩虹")


def test_plain_text_in_exif_and_xmp() -> None:
    # Pillow writes ASCII only; other programs write UTF-8.
    data = exif_picture("JPEG", {0x010E: "a caf??"}).getvalue().replace(b"??", "é".encode())
    assert read_metadata(BytesIO(data)) == Metadata("a café")
    for form in ("JPEG", "WEBP", "PNG"):
        assert read_metadata(with_xmp(form, description="a cat & a dog")) == Metadata(
            "a cat & a dog"
        )


def test_precedence() -> None:
    everything = {
        "parameters": A1111,
        "invokeai_metadata": '{"positive_prompt": "invoke"}',
        "Software": "NovelAI",
        "Description": "novel",
        "prompt": json.dumps(GRAPH),
    }
    order = []
    for name in ("invokeai_metadata", "Software", "parameters", "prompt", "Description"):
        order.append(read_metadata(png(**everything)).generator)
        del everything[name]
    assert order == ["invokeai", "novelai", "automatic1111", "comfyui", ""]


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ({}, "no prompt: the picture carries no text"),
        ({"Software": "gimp", "Title": "x"}, "no prompt: the picture carries Software, Title"),
        ({"parameters": SETTINGS}, "empty prompt: the settings of automatic1111 have"),
        ({"prompt": '{"3": {"class_type"'}, "unknown metadata: 'prompt' begins with"),
        ({"prompt": '[{"a":' * 99999}, "unknown metadata"),
        ({"prompt": '{"a":' * 99999}, "unknown metadata"),
        ({"parameters": '{"x": 1}'}, "unknown metadata: 'parameters'"),
        (
            {"invokeai_metadata": '{"seed": 1}'},
            "empty prompt: the settings of invokeai have no prompt",
        ),
        ({"Software": "NovelAI"}, "empty prompt: the settings of novelai have"),
        ({"prompt": "  \n "}, "no prompt: the picture carries prompt"),
    ],
)
def test_no_prompt(texts: dict[str, str], reason: str) -> None:
    with pytest.raises(NoPrompt, match=f"^{reason}"):
        read_metadata(png(**texts))


REAL_WITHOUT_PROMPT = {
    f"artists_{number:04d}.png": "undecided prompt: node 54 (CR Text Cycler) returns a list"
    # One run over a list of 129 artists: every picture carries the same graph with the whole list.
    for number in range(0, 129, 16)
}


def test_real_pictures(shared_data: Path) -> None:
    with open(shared_data / "pictures.csv", newline="", encoding="utf-8") as file:
        prompts = {row["file"]: row["prompt"] for row in csv.DictReader(file)}
    equal, different = 0, {}
    for file, prompt in prompts.items():
        with open(shared_data / file, "rb") as stream:
            try:
                metadata = read_metadata(stream).prompt
            except NoPrompt as error:
                metadata = str(error)
        if normalise(metadata) == normalise(prompt):
            equal += 1
        elif file.endswith(".png"):
            different[Path(file).name] = metadata
        else:
            assert metadata.startswith("no prompt: the picture carries"), file
    assert equal == 17
    assert different.keys() == REAL_WITHOUT_PROMPT.keys()
    for name, reason in REAL_WITHOUT_PROMPT.items():
        assert different[name].startswith(reason)


def test_the_real_lists_of_artists_were_not_taken_for_a_prompt(shared_data: Path) -> None:
    """The longest text of those graphs is a list of artists, which is nobody's prompt."""
    with Image.open(shared_data / "pictures" / "artists_0000.png") as image:
        graph = json.loads(image.info["prompt"])
    assert "Agnes Lawrence Pelton\nAkihiko Yoshida" in graph["54"]["inputs"]["text"]
    with pytest.raises(NoPrompt, match=r"computed prompt: node 54 \(CR Text Cycler\)"):
        read_metadata(png(prompt=json.dumps(graph)))
