import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageOps
from tiny import config_of, model_of

import img2prompt
from img2prompt.config.prepare import ShardConfig
from img2prompt.data.vectors import matrix
from img2prompt.draft import Draft
from img2prompt.errors import UserError
from img2prompt.model.precision import compute_dtype
from img2prompt.model.prompt_model import WEIGHTS, learned_state
from img2prompt.model.towers.build import open_tower
from img2prompt.notebook import LoadedPredictor
from img2prompt.workspace import Stage, Workspace

SIZE = 32


@pytest.fixture(scope="module")
def out(tiny_tower: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with shards of no picture, and a run whose learned tensors are random."""
    workspace = Workspace(str(tmp_path_factory.mktemp("out")))
    shards = Draft.open(workspace.shards, Stage.SHARDS, ShardConfig(size=SIZE), {}).publish()
    config = config_of(tiny_tower)
    tower = open_tower(config.tower)
    inputs = {"tower": tower.base_fingerprint, "shards": shards.fingerprint}
    draft = Draft.open(workspace.run("lora"), Stage.TRAIN, config, inputs)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: tensor + 0.05 * torch.rand(tensor.shape, generator=generator)
        for name, tensor in learned_state(model_of(config)).items()
    }
    draft.write_bytes(WEIGHTS, safetensors.torch.save(state))
    draft.publish()
    return workspace.out


@pytest.fixture(scope="module")
def run(out: str) -> LoadedPredictor:
    return img2prompt.load(out, run="lora")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def same(vectors: np.ndarray, others: np.ndarray) -> bool:
    """Return whether vectors are equal but for the order of sums, which may differ by row."""
    return bool(np.abs(vectors - others).max() < 1e-5)


def test_all_kinds_of_pictures_have_the_same_vector(run: LoadedPredictor, tmp_path: Path) -> None:
    image = noise(SIZE, SIZE)
    path = tmp_path / "100%25 of a picture.png"
    path.write_bytes(png(image))
    kinds = [path, str(path), png(image), image, np.array(image)]
    answers = run.predict(kinds)
    assert answers.vectors.shape == (5, 384)
    assert answers.vectors.dtype == np.float32
    assert same(answers.vectors, answers.vectors[0])
    assert not same(run.predict([noise(SIZE, SIZE, 1)]).vectors, answers.vectors[0])
    assert answers.texts is None
    assert answers.confidences is None


def test_vectors_are_those_of_the_model(out: str, run: LoadedPredictor, tiny_tower: str) -> None:
    pictures = [noise(SIZE, SIZE, seed) for seed in range(3)]
    model = model_of(config_of(tiny_tower)).eval()
    weights = Path(Workspace(out).run("lora"), WEIGHTS).read_bytes()
    model.load_state_dict(safetensors.torch.load(weights), strict=False)
    assert model.tower is not None
    model.tower.to(compute_dtype("auto", torch.device("cpu")))
    with torch.inference_mode():
        expected = model(torch.from_numpy(np.stack([np.array(p) for p in pictures]))).float()
    vectors = run.predict(iter(pictures), batch_size=2).vectors
    assert np.allclose(vectors, expected.numpy(), atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_pillow_pictures_are_turned_upright_and_put_on_white(run: LoadedPredictor) -> None:
    turned = noise(48, 40)
    turned.getexif()[0x0112] = 6
    glass = noise(SIZE, SIZE).convert("RGBA")
    glass.putalpha(0)
    upright, white = ImageOps.exif_transpose(turned), Image.new("RGB", (SIZE, SIZE), "white")
    vectors = run.predict([turned, upright, glass, white, white.convert("1")]).vectors
    assert same(vectors[0], vectors[1])
    assert same(vectors[2], vectors[3])
    assert same(vectors[3], vectors[4])


def test_an_array_of_pictures_is_a_list_of_pictures(run: LoadedPredictor) -> None:
    pictures = np.stack([np.array(noise(40, 40, seed)) for seed in range(2)])
    assert same(run.predict(pictures).vectors, run.predict(list(pictures)).vectors)


def test_no_picture_has_no_vector(run: LoadedPredictor) -> None:
    assert run.predict([]).vectors.shape == (0, 384)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("absent.png", r"picture 1 \(absent\.png\) cannot be read: .*No such file"),
        (b"text", "picture 1 cannot be read: not a picture"),
        (np.zeros((4, 4), np.uint8), r"array is uint8 \(4, 4\); allowed: uint8 \(H, W, 3\)"),
        (np.zeros((4, 4, 3)), r"array is float64 \(4, 4, 3\); allowed"),
        (np.zeros((0, 4, 3), np.uint8), r"array is uint8 \(0, 4, 3\); allowed"),
        (7, "it is a int; allowed: a path, bytes"),
    ],
)
def test_a_bad_picture_is_an_error_that_names_it(
    run: LoadedPredictor, picture, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run.predict([noise(SIZE, SIZE), picture])


def test_a_single_picture_is_no_list(run: LoadedPredictor) -> None:
    for picture in ("a.png", Path("a.png"), b"bytes", noise(4, 4)):
        with pytest.raises(UserError, match="give a list of pictures"):
            run.predict(picture)  # type: ignore[arg-type]


def test_a_missing_run_or_one_of_other_shards_is_refused(out: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no finished train"):
        img2prompt.load(out, run="absent")
    other = Workspace(str(tmp_path))
    (tmp_path / "runs").symlink_to(Workspace(out).runs)
    Draft.open(other.shards, Stage.SHARDS, ShardConfig(size=64), {}).publish()
    with pytest.raises(UserError, match="was made from other shards"):
        img2prompt.load(other.out, run="lora")


def test_the_package_imports_nothing_heavy() -> None:
    code = "import img2prompt, sys; assert not {'torch', 'ray', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.ray
@pytest.mark.slow
def test_vectors_are_those_of_the_predictions_stage(chained) -> None:
    workspace = Workspace(chained.out)
    table = chained.made.predictions.read_tables("vectors-")
    pictures = [f"{workspace.samples}/{name}" for name in table["id"].to_pylist()]
    vectors = img2prompt.load(chained.out, run="lora").predict(pictures).vectors
    assert np.abs(vectors - matrix(table["vector"])).max() < 1e-5
