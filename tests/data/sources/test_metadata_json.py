"""Programs that write their settings as JSON, beside the pixels or hidden in them."""

import gzip
import json
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from metadata_pictures import exif_picture, png
from PIL import Image

from img2prompt.data.sources.metadata.base import Metadata, NoPrompt
from img2prompt.data.sources.metadata.programs import read_metadata
from img2prompt.data.sources.metadata.stealth import PACKED, PLAIN, read_hidden_texts


def test_swarmui() -> None:
    swarm = {"prompt": "a cat", "negativeprompt": "bad", "seed": 7, "steps": 2, "cfgscale": 1.5}
    text = json.dumps({"sui_image_params": swarm})
    expected = Metadata("a cat", "bad", "swarmui", 7, 2, 1.5)
    assert read_metadata(png(parameters=text)) == expected
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    assert read_metadata(exif_picture("JPEG", {}, comment)) == expected


def test_fooocus_and_its_forks() -> None:
    fooocus = {"prompt": "a cat", "negative_prompt": "", "seed": "7", "guidance_scale": 4.0}
    record = json.dumps(fooocus | {"steps": 30, "sampler": "lcm"})
    assert read_metadata(png(parameters=record)) == Metadata(
        "a cat", "", "fooocus", 7, 30, 4.0, "lcm"
    )
    mre = {"prompt": "a cat", "negative_prompt": "bad", "seed": 7, "sampler": "lcm", "cfg": 4}
    record = json.dumps(mre | {"steps": 30, "software": "Fooocus 1.0.43 MRE"})
    assert read_metadata(png(Comment=record)) == Metadata(
        "a cat", "bad", "fooocus", 7, 30, 4.0, "lcm"
    )
    ruined = {"Prompt": "a cat", "Negative": "bad", "steps": 30, "cfg": 4, "seed": 7}
    record = json.dumps(ruined | {"sampler_name": "lcm", "software": "RuinedFooocus"})
    expected = Metadata("a cat", "bad", "ruinedfooocus", 7, 30, 4.0, "lcm")
    assert read_metadata(png(parameters=record)) == expected
    with pytest.raises(NoPrompt, match="empty prompt: the settings of ruinedfooocus"):
        read_metadata(png(parameters='{"software": "RuinedFooocus"}'))


EASY = {
    **{"prompt": "a fox", "seed": 5, "negative_prompt": "blurry", "num_inference_steps": 25},
    **{"guidance_scale": 7.5, "sampler_name": "euler_a", "use_stable_diffusion_model": "sd"},
}
EASY_METADATA = Metadata("a fox", "blurry", "easydiffusion", 5, 25, 7.5, "euler_a")


def test_easy_diffusion() -> None:
    comment = b"UNICODE\0" + json.dumps(EASY).encode("utf-16-be")
    for form in ("JPEG", "WEBP"):
        assert read_metadata(exif_picture(form, {}, comment)) == EASY_METADATA
    assert read_metadata(png(**{name: str(value) for name, value in EASY.items()})) == EASY_METADATA
    texts = {
        **{"Prompt": "a fox", "Seed": "5", "Negative Prompt": "blurry", "Steps": "25"},
        **{"Guidance Scale": "7.5", "Sampler": "euler_a", "Stable Diffusion model": "sd"},
    }
    assert read_metadata(png(**texts)) == EASY_METADATA


COMMENT = {"steps": 28, "sampler": "k_euler", "seed": 7, "scale": 11.0, "uc": "bad"}
NOVELAI = {"Software": "NovelAI", "Description": "1girl", "Comment": json.dumps(COMMENT)}
NOVELAI_METADATA = Metadata("1girl", "bad", "novelai", 7, 28, 11.0, "k_euler")


def caption(base: str, *characters: Any) -> dict[str, Any]:
    captions = [{"char_caption": text, "centers": [{"x": 0.5, "y": 0.5}]} for text in characters]
    return {"caption": {"base_caption": base, "char_captions": captions}, "use_order": True}


def test_novelai_in_png_and_webp() -> None:
    assert read_metadata(png(**NOVELAI)) == NOVELAI_METADATA
    comment = b"ASCII\0\0\0" + json.dumps(NOVELAI).encode()
    assert read_metadata(exif_picture("WEBP", {}, comment)) == NOVELAI_METADATA


def test_the_captions_of_novelai_characters() -> None:
    captions = {
        "v4_prompt": caption("two people,", "girl, red scarf", " boy, hat "),
        "v4_negative_prompt": caption("bad", "", "frown"),
    }
    texts = NOVELAI | {"Comment": json.dumps(COMMENT | captions), "Description": "two people,"}
    metadata = read_metadata(png(**texts))
    assert metadata.prompt == "two people, girl, red scarf, boy, hat"
    assert metadata.negative == "bad, frown"
    for broken in (3, {}, {"caption": 3}, {"caption": {"char_captions": [3, {}]}}, caption("")):
        texts = NOVELAI | {"Comment": json.dumps(COMMENT | {"v4_prompt": broken})}
        assert read_metadata(png(**texts)) == NOVELAI_METADATA


def hidden(payload: bytes, signature: bytes, form: str = "PNG", width: int = 40) -> BytesIO:
    """Return a picture with data in the lowest bits of its alpha channel, column by column."""
    length = (len(payload) * 8).to_bytes(4, "big")
    bits = np.unpackbits(np.frombuffer(signature + length + payload, np.uint8))
    height = -(-len(bits) // width)
    alpha = np.full(width * height, 254, np.uint8)
    alpha[: len(bits)] |= bits
    pixels = np.full((height, width, 4), 128, np.uint8)
    pixels[..., 3] = alpha.reshape(width, height).T
    sink = BytesIO()
    Image.fromarray(pixels).save(
        sink, form, **({"lossless": True, "exact": True} if form == "WEBP" else {})
    )
    return sink


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_texts_in_the_alpha_channel(form: str) -> None:
    novelai = json.dumps(NOVELAI | {"Comment": COMMENT}).encode()
    picture = hidden(gzip.compress(novelai), PACKED, form)
    assert read_metadata(picture) == NOVELAI_METADATA
    automatic = b"a fox\nSteps: 20, Sampler: Euler a, Seed: 5"
    assert read_metadata(hidden(automatic, PLAIN, form)).prompt == "a fox"


def test_a_text_beside_the_pixels_goes_before_a_hidden_one() -> None:
    picture = Image.open(hidden(b"a fox\nSteps: 20, Seed: 5", PLAIN))
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + json.dumps(EASY).encode()
    sink = BytesIO()
    picture.save(sink, "PNG", exif=exif.tobytes())
    assert read_metadata(sink) == EASY_METADATA


def test_alpha_channels_without_a_text() -> None:
    bomb = gzip.compress(bytes(20 << 20))
    for picture in (
        hidden(b"{}", b"stealth_unknown"),
        hidden(b"", PACKED),
        hidden(b"no gzip", PACKED),
        hidden(b"\xff\xfe", PLAIN),
        hidden(bomb, PACKED, width=400),
        hidden(b"", b"", width=1),
    ):
        with pytest.raises(NoPrompt, match="no prompt: the picture carries no text"):
            read_metadata(picture)
    text = "a fox\nSteps: 20, Seed: 5"
    data = hidden(text.encode(), PLAIN).getvalue()
    for end in range(0, len(data), 7):
        assert read_hidden_texts(BytesIO(data[:end])) in ({}, {"parameters": text})
