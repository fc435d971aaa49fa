"""Descriptions: programs that write one line, captions of cameras, and records beside them."""

import contextlib
import json

import pytest
from metadata_pictures import exif_picture, png, with_xmp

from img2prompt.data.sources.metadata.base import Metadata, NoPrompt
from img2prompt.data.sources.metadata.programs import read_metadata

JOB = "Job ID: 0f7c1a3e-1b2c-4d5e-8f90-123456789abc"
DESCRIPTION, MAKE, MODEL, SOFTWARE = 0x010E, 0x010F, 0x0110, 0x0131


@pytest.mark.parametrize(
    ("command", "prompt", "negative", "seed"),
    [
        (f"a red fox in snow {JOB}", "a red fox in snow", "", None),
        (f"a red fox in snow --ar 16:9 --v 6.1 {JOB}", "a red fox in snow", "", None),
        (
            f"a red fox in snow --niji --seed 7 --no a dog, text {JOB}",
            "a red fox in snow",
            *("a dog, text", 7),
        ),
        ("a red fox in snow --ar 16:9 --v 6.1", "a red fox in snow", "", None),
        ("a red fox in snow \u2014ar 16:9", "a red fox in snow", "", None),
        (f"a fox \u2014alone -- in snow --tile {JOB}", "a fox \u2014alone -- in snow", "", None),
        (f"https://s.mj.run/ab <https://s.mj.run/cd> a fox --iw 2 {JOB}", "a fox", "", None),
        (f"a fox::2 snow::1 --unknown 3 {JOB}", "a fox::2 snow::1", "", None),
    ],
)
def test_midjourney(command: str, prompt: str, negative: str, seed: int | None) -> None:
    expected = Metadata(prompt, negative, "midjourney", seed)
    assert read_metadata(png(Description=command, Author="somebody")) == expected
    assert read_metadata(with_xmp("JPEG", description=command)) == expected


def test_pictures_of_one_midjourney_prompt_have_one_prompt() -> None:
    jobs = [f"a fox --ar 1:1 Job ID: {digit * 8}-1b2c-4d5e-8f90-123456789abc" for digit in "0123"]
    assert {read_metadata(png(Description=job)).prompt for job in jobs} == {"a fox"}


def test_a_midjourney_job_without_text() -> None:
    with pytest.raises(NoPrompt, match="empty prompt: the settings of midjourney"):
        read_metadata(png(Description=f"https://s.mj.run/ab https://s.mj.run/cd --v 6 {JOB}"))


@pytest.mark.timeout(20)
def test_long_hostile_descriptions_are_read_quickly() -> None:
    for part in (
        " ",
        " --ar",
        "Job ID: ",
        "Include in Image: ; Exclude from Image: ",
        "{a|",
        "-\n",
    ):
        text = f"{part * 200_000} --v 6 {JOB}"
        with contextlib.suppress(NoPrompt):
            read_metadata(png(Description=text))
        with contextlib.suppress(NoPrompt):
            read_metadata(png(Description=f"Include in Image: {part * 200_000}"))


MOCHI = (
    "Include in Image: a cat; a dog, snow; Exclude from Image: blurry; Model: anything-v4; "
    "Steps: 50; Guidance Scale: 4.0; Seed: 3483372203; Size: 512x512; Scheduler: DPM-Solver++; "
    "Generator: Mochi Diffusion 2.2"
)


def test_mochi_diffusion() -> None:
    expected = Metadata("a cat; a dog, snow", "blurry", *("mochi", 3483372203, 50, 4.0))
    expected = Metadata(**vars(expected) | {"sampler": "DPM-Solver++"})
    for picture in (with_xmp("PNG", description=MOCHI), exif_picture("JPEG", {DESCRIPTION: MOCHI})):
        assert read_metadata(picture) == expected
    assert read_metadata(png(Description="Include in Image: a cat")).prompt == "a cat"
    with pytest.raises(NoPrompt, match="empty prompt: the settings of mochi"):
        read_metadata(png(Description="Include in Image: ; Exclude from Image: x; Seed: 3"))


LIGHTHOUSE = (
    "a lighthouse (at dusk) [near the cliffs]\n-fog, (people), [boats]\n"
    "Steps: 10, Sampler: DDIM, Guidance Scale: 10.0, Seed: 117, Size: 1152x768"
)
RECORD = {
    "c": "a lighthouse (at dusk) [near the cliffs]",
    "uc": "fog, (people), [boats]",
    **{"steps": 10, "sampler": "DDIM", "scale": 10.0, "seed": 117, "size": "1152x768"},
}
LIGHTHOUSE_METADATA = Metadata(RECORD["c"], RECORD["uc"], "drawthings", 117, 10, 10.0, "DDIM")


def test_draw_things() -> None:
    record = json.dumps(RECORD)
    for form in ("PNG", "JPEG", "WEBP"):
        picture = with_xmp(form, "Draw Things", description=LIGHTHOUSE, comment=record)
        assert read_metadata(picture) == LIGHTHOUSE_METADATA
    comment = b"ASCII\0\0\0" + record.encode()
    picture = exif_picture("JPEG", {DESCRIPTION: LIGHTHOUSE}, comment)
    assert read_metadata(picture) == LIGHTHOUSE_METADATA
    # A converter that drops the record leaves the description.
    assert read_metadata(png(Description=LIGHTHOUSE)) == LIGHTHOUSE_METADATA


def test_a_draw_things_description_with_a_list_is_undecided() -> None:
    with pytest.raises(NoPrompt, match="undecided prompt: 2 lines of Draw Things"):
        read_metadata(png(Description=f"a list:\n- tea\n{LIGHTHOUSE}"))


def test_settings_of_an_unknown_program_are_no_prompt() -> None:
    for text in ("a fox\nSteps: 20, Strength: 2", "a fox\nGuidance scale: 7"):
        with pytest.raises(NoPrompt, match="unknown metadata: 'Description' holds settings"):
            read_metadata(png(Description=text))


@pytest.mark.parametrize(
    "caption",
    [
        *("OLYMPUS DIGITAL CAMERA         ", "SONY DSC", "SAMSUNG CAMERA PICTURES", "DCIM"),
        *("Created with GIMP", "Exif_JPEG_PICTURE", "Processed with VSCO with a6 preset"),
        *("KONICA MINOLTA DIGITAL CAMERA", "dav", "Screenshot"),
    ],
)
def test_default_captions(caption: str) -> None:
    for picture in (
        exif_picture("JPEG", {DESCRIPTION: caption, MAKE: "Maker", MODEL: "Model"}),
        exif_picture("WEBP", {DESCRIPTION: caption}),
        png(Description=caption),
    ):
        with pytest.raises(NoPrompt, match=r"^no prompt: '.*' is a default caption: "):
            read_metadata(picture)


def test_captions_of_photographs() -> None:
    picture = exif_picture("JPEG", {DESCRIPTION: "Ann on the beach", MAKE: "Canon", MODEL: "R5"})
    with pytest.raises(NoPrompt, match="is the caption of a photograph by 'Canon R5': 'Ann on the"):
        read_metadata(picture)
    for picture in (
        exif_picture("JPEG", {DESCRIPTION: "Ann on the beach", SOFTWARE: "Adobe Photoshop 24"}),
        with_xmp("PNG", "Adobe Photoshop Lightroom", description="Ann on the beach"),
    ):
        with pytest.raises(NoPrompt, match="is a caption written with 'Adobe Photoshop"):
            read_metadata(picture)


def test_a_prompt_in_a_picture_with_a_camera_or_an_editor() -> None:
    a1111 = "a fox\nSteps: 20, Sampler: Euler a, Seed: 5"
    picture = exif_picture("JPEG", {MAKE: "Canon"}, b"ASCII\0\0\0" + a1111.encode())
    assert read_metadata(picture).prompt == "a fox"
    assert read_metadata(png(prompt="a fox", Software="Adobe Photoshop")).prompt == "a fox"
    assert read_metadata(png(Description="a digital camera")).prompt == "a digital camera"
