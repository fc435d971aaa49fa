"""Presets of recipes that others published for this task, as far as this package can express them.

Each docstring names the source, the authors' score (mean cosine on the private test set of Kaggle's
"Stable Diffusion - Image to Prompts") and what is unpublished and therefore ours. None of them was
run here. `lora_published` in `presets.py` is the 1st place's model.

Not here, because it cannot be expressed: the 5th place's MADGRAD with SAM and a head without bias,
the 2nd place's Q-Former head, and the 1st place's two-stage training on noisy and clean prompts as
one config (run it twice, with `start_from`, for the head alone).
"""

from img2prompt.config.recipe import RecipeConfig
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import EngineConfig, OptimConfig, PlanConfig, TrainConfig

L14 = TowerConfig(weights="openai/clip-vit-large-patch14")
L14_336 = TowerConfig(weights="openai/clip-vit-large-patch14-336")


def last_layers_l14() -> TrainConfig:
    """CLIP ViT-L/14 at 224 px: a linear head and the last six layers, from the probe's head.

    Source: one of the two models that this package grew from. Its authors blended it with the same
    at 336 px, and no score of the test set is known. Published:
    the last 4 to 6 layers trained, negative mean cosine, AdamW at 1e-4, batches of 64, 8 epochs,
    flips of half the pictures, the head first (LP-FT). Weight decay and warm-up are ours.
    """
    return TrainConfig(
        name="last-layers",
        start_from="probe",
        tower=L14,
        plan=PlanConfig(nfz_rate=0.25),
        optim=OptimConfig(epochs=8, batch_size=64, lr=1e-4, head_lr=1e-4),
        recipe=RecipeConfig(flip=0.5),
    )


def third_place() -> TrainConfig:
    """The small-data recipe: CLIP ViT-L/14-336, layer decay 0.6, average and light augmentation.

    Source: 3rd place, write-up 410686: 0.6343 with this tower alone and 0.4M pictures. Published:
    LP-FT, layer decay 0.6 and an average of weights (0.9998), together about +0.02; crops, random
    erasing and RandAugment without posterize, solarize and equalize, +0.007 on their validation
    set; no flips. Strengths of the augmentations, rates, epochs, batch size and that all layers
    learn are ours.
    """
    return TrainConfig(
        name="third-place",
        start_from="probe",
        tower=L14_336,
        plan=PlanConfig(nfz_rate=1.0, embeddings=True),
        optim=OptimConfig(epochs=5, batch_size=128, lr=1e-4, head_lr=1e-4, layer_decay=0.6),
        recipe=RecipeConfig(crop_area=0.7, erase=0.25, rand_augment=2, ema_decay=0.9998),
        engine=EngineConfig(micro_batch=32),  # 22 GB of activations
    )


def sixth_place() -> TrainConfig:
    """Flips, and the cosine with a little squared error, on CLIP ViT-L/14-336.

    Source: 6th place, write-up 410768, without a score of a single model. Published: horizontal
    flips as the only augmentation, `CosineEmbeddingLoss` plus 0.01 of the mean squared error, 5
    epochs, batches of 128. Its towers are EVA-L/336, ConvNeXt-L/384 and Swin-L/384; this one,
    rates, start from a probe and that all layers learn are ours.
    """
    return TrainConfig(
        name="sixth-place",
        start_from="probe",
        tower=L14_336,
        plan=PlanConfig(nfz_rate=1.0, embeddings=True),
        optim=OptimConfig(epochs=5, batch_size=128, lr=2e-5, head_lr=1e-4),
        recipe=RecipeConfig(flip=0.5, mse_weight=0.01),
        engine=EngineConfig(micro_batch=32),
    )


def twelfth_place() -> TrainConfig:
    """All layers at a very low rate, by ZeRO 2, on CLIP ViT-L/14-336.

    Source: 12th place, write-up 410657, without a score of a single model. Published: DeepSpeed
    stage 2, one linear head, negative cosine, 3 epochs, a peak rate of 1e-6, no LoRA. AdamW instead
    of its 8-bit Adam and Lion, the cosine schedule instead of OneCycle, this one of its 25 towers,
    batch size and start from a probe are ours.
    """
    return TrainConfig(
        name="twelfth-place",
        start_from="probe",
        tower=L14_336,
        plan=PlanConfig(nfz_rate=1.0, embeddings=True),
        optim=OptimConfig(epochs=3, batch_size=128, lr=1e-6, head_lr=1e-6),
        engine=EngineConfig(zero_stage=2, micro_batch=32),
    )
