"""Tiny diffusers pipelines with random weights, as folders: one for each family.

The sizes follow diffusers' own tests (tests/pipelines/stable_diffusion); the tokenizer, which those
fetch from the hub, has one token for each byte here.
"""

import json
from pathlib import Path

import torch

TOKENS = 514
"""256 bytes within a word, 256 at its end, and two special tokens."""


def write_pipeline(
    family: str, folder: Path, seed: int = 0, channels: tuple[int, int] = (4, 8)
) -> str:
    """Write a pipeline of a family: `sd15`, `v-prediction` or `sdxl`.

    `channels` are those of the denoiser's two levels.
    """
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    tokenizer = _tokenizer(folder / "tokenizer-files")
    parts = {
        "vae": _vae(),
        "unet": _unet(family, channels),
        "scheduler": _scheduler(family),
        "text_encoder": CLIPTextModel(_text_config()),
        "tokenizer": tokenizer,
    }
    if family == "sdxl":
        second = CLIPTextModelWithProjection(_text_config())
        parts |= {"text_encoder_2": second, "tokenizer_2": tokenizer}
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        pipeline = diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.save_pretrained(folder / family)
    return str(folder / family)


def _unet(family: str, channels: tuple[int, int]):
    from diffusers import UNet2DConditionModel

    options = {}
    if family == "sdxl":
        options = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 8 + 6 * 4,  # pooled text, six sizes
            "transformer_layers_per_block": (1, 1),
            "use_linear_projection": True,
        }
    return UNet2DConditionModel(
        block_out_channels=channels,
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16 if family == "sdxl" else 8,
        attention_head_dim=4,
        norm_num_groups=2,
        **options,
    )


def _vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=32,
    )


def _scheduler(family: str):
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    shared = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if family == "sdxl":
        return EulerDiscreteScheduler(**shared, steps_offset=1, timestep_spacing="leading")
    prediction = "v_prediction" if family == "v-prediction" else "epsilon"
    return DDIMScheduler(
        **shared,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type=prediction,
    )


def _text_config():
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=8,
        vocab_size=TOKENS,
        bos_token_id=TOKENS - 2,
        eos_token_id=TOKENS - 1,
        pad_token_id=TOKENS - 1,
    )


def _tokenizer(folder: Path):
    """A byte-level CLIP tokenizer without merges, from its own files."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    # GPT-2's printable stand-ins for bytes.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = range(256, 256 + 256 - len(printable))
    letters = [chr(code) for code in (*printable, *others)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: n for n, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)
