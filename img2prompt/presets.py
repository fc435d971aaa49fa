"""Presets: functions that return a complete config. A variant changes a few fields of another.

`demo` needs no download: drawn scenes and the tower in this package. Nor does `pictures`: your own
through EfficientNet-Lite2, which is installed with this package. `l14-336` is the real size,
`openai/clip-vit-large-patch14-336` from the local hub cache (or `--tower.weights PATH`).
"""

from img2prompt.config.average import AverageConfig
from img2prompt.config.chain import ChainConfig
from img2prompt.config.generate import GenerateConfig, PipelineConfig, SamplingConfig
from img2prompt.config.planning import ScaleConfig
from img2prompt.config.predict import (
    BlendConfig,
    CalibrateConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
)
from img2prompt.config.prepare import FeaturesConfig, GroupConfig, PrepareConfig, ShardConfig
from img2prompt.config.search import SearchConfig
from img2prompt.config.sources import PictureSource, SceneSource
from img2prompt.config.tower import TowerConfig
from img2prompt.config.train import EngineConfig, HeadConfig, OptimConfig, PlanConfig, TrainConfig
from img2prompt.published import (
    L14,
    L14_336,
    last_layers_l14,
    sixth_place,
    third_place,
    twelfth_place,
)

LITE2 = TowerConfig(weights="efficientnet-lite2")
LITE2_SIZES = TowerConfig(
    weights="efficientnet-lite2", image_size=384, beside=("efficientnet-lite2@260",)
)
RIDGE_STRENGTHS = (1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Penalties of probes in closed form, from those of a million pictures to those of hundreds. The
default of `optim.ridge_strengths` ends earlier; it stays, so that earlier runs resume."""
ONE_WORKER = EngineConfig(kind="plain", workers=1)


def demo_data() -> PrepareConfig:
    """Drawn scenes at the demo tower's 64 pixels."""
    return PrepareConfig(
        name="demo", sources=(SceneSource(),), shard=ShardConfig(size=64, rows_per_shard=512)
    )


def tower_data() -> PrepareConfig:
    """Scenes to train the demo tower on, of another world than the demo's."""
    return demo_data().replace(
        {
            "name": "tower",
            "sources": [{"world": "tower", "prompts": 60_000, "pictures_per_prompt": 1}],
            "group": GroupConfig(
                duplicate_cosine=1.0, split_cosine=0.95, val_fraction=0.01, test_fraction=0.01
            ).to_dict(),
            "shard.rows_per_shard": 4096,
        }
    )


def pictures_data() -> PrepareConfig:
    """Your pictures, at 260 pixels for EfficientNet-Lite2 (`--sources.0.path PATH`)."""
    return PrepareConfig(
        name="pictures",
        sources=(PictureSource(path="pictures.csv"),),
        shard=ShardConfig(size=260),
    )


def pictures_small_data() -> PrepareConfig:
    """Your pictures, at the demo tower's 64 pixels (`--sources.0.path PATH`)."""
    return pictures_data().replace({"name": "pictures-small", "shard.size": 64})


def pictures_l14_336_data() -> PrepareConfig:
    """Your pictures, at 336 pixels for ViT-L/14-336 (`--sources.0.path PATH`)."""
    return pictures_data().replace({"name": "pictures-l14-336", "shard.size": 336})


def pictures_l14_data() -> PrepareConfig:
    """Your pictures, at 224 pixels for ViT-L/14 (`--sources.0.path PATH`)."""
    return pictures_data().replace({"name": "pictures-l14", "shard.size": 224})


def demo_features() -> FeaturesConfig:
    """Features of the demo tower."""
    return FeaturesConfig()


def lite2_features() -> FeaturesConfig:
    """Features of EfficientNet-Lite2."""
    return FeaturesConfig(tower=LITE2)


def lite2_sizes_features() -> FeaturesConfig:
    """Features of EfficientNet-Lite2 at 384 and at 260 pixels, side by side."""
    return FeaturesConfig(tower=LITE2_SIZES)


def l14_336_features() -> FeaturesConfig:
    """Features of CLIP ViT-L/14-336."""
    return FeaturesConfig(tower=L14_336)


def l14_features() -> FeaturesConfig:
    """Features of CLIP ViT-L/14."""
    return FeaturesConfig(tower=L14)


def probe_demo() -> TrainConfig:
    """A linear head on cached features of the demo tower."""
    return TrainConfig(
        name="probe",
        engine=ONE_WORKER,
        optim=OptimConfig(epochs=12, batch_size=128, head_lr=5e-3),
    )


def lora_demo() -> TrainConfig:
    """The published layout on the demo tower, starting with the probe's head."""
    return TrainConfig(
        name="lora",
        start_from="probe",
        plan=PlanConfig(lora_rate=0.45, nfz_rate=0.45, lora_rank=16),
        optim=OptimConfig(epochs=5, batch_size=64, lr=5e-4, head_lr=1e-3),
    )


def in_closed_form(probe: TrainConfig) -> TrainConfig:
    """Return a linear probe that ridge regression solves; `--optim.solver adamw` trains it."""
    return probe.replace({"optim.solver": "ridge", "optim.ridge_strengths": RIDGE_STRENGTHS})


def probe_small() -> TrainConfig:
    """A linear head on cached features of the demo tower, in closed form, for your pictures."""
    return in_closed_form(probe_demo())


def probe_lite2() -> TrainConfig:
    """A linear head on cached features of EfficientNet-Lite2, in closed form."""
    return in_closed_form(heads_lite2())


def probe_lite2_sizes() -> TrainConfig:
    """A linear head on features of EfficientNet-Lite2 at two sizes, in closed form."""
    return probe_lite2().replace({"tower": LITE2_SIZES.to_dict()})


def heads_lite2() -> TrainConfig:
    """Return the settings of AdamW for heads on features of EfficientNet-Lite2."""
    return TrainConfig(
        name="probe",
        tower=LITE2,
        engine=ONE_WORKER,
        # Small batches and strong decay: 847 pictures overfit from the tenth epoch on.
        optim=OptimConfig(epochs=10, batch_size=32, head_lr=2e-3, weight_decay=1.0),
    )


def lora_lite2() -> TrainConfig:
    """EfficientNet-Lite2: LoRA on the upper third, starting with the probe's head."""
    return TrainConfig(
        name="lora",
        start_from="probe",
        tower=LITE2,
        plan=PlanConfig(lora_rate=0.3),
        # A head in closed form has weights of about 5e-4: a larger rate would soon replace them.
        optim=OptimConfig(epochs=2, batch_size=64, lr=5e-4, head_lr=5e-6),
    )


def probe_l14_336() -> TrainConfig:
    """A linear head on cached features of CLIP ViT-L/14-336, in closed form."""
    return in_closed_form(heads_l14_336())


def probe_l14() -> TrainConfig:
    """A linear head on cached features of CLIP ViT-L/14, in closed form."""
    return probe_l14_336().replace({"tower": L14.to_dict()})


def heads_l14_336() -> TrainConfig:
    """Return the settings of AdamW for heads on features of CLIP ViT-L/14-336."""
    return probe_demo().replace(
        {"tower": L14_336.to_dict(), "optim.batch_size": 1024, "optim.head_lr": 1e-3}
    )


def lora_l14_336() -> TrainConfig:
    """CLIP ViT-L/14-336: LoRA on layers 1-14, layers 15-23 trained, from the probe's head.

    The published layout (1st place) with a linear head and LoRA rank 16; `lora-published` has the
    published rank and head.
    """
    return TrainConfig(
        name="lora",
        start_from="probe",
        tower=L14_336,
        plan=PlanConfig(lora_rate=0.6, nfz_rate=0.4),
        optim=OptimConfig(epochs=3, batch_size=256, lr=5e-5, head_lr=5e-5, warmup=0.2),
        engine=EngineConfig(micro_batch=64),  # 38 GB of activations, for a GPU of 80 GB
    )


def lora_published() -> TrainConfig:
    """The published model: CLIP ViT-L/14-336, LoRA of rank 256 and a wide head, without a probe.

    Source: the 1st place of Kaggle's "Stable Diffusion - Image to Prompts", write-up 411237. Its
    private scores: 0.5725 with 0.2M prompts, 0.6368 with 2M, 0.6459 with 8.6M. 165.8M of 356.0M
    parameters learn. `rank=4` in its code is a divisor: 1024 // 4 = 256. Five epochs, the first of
    them warm-up, and the learning rate 1e-4 are published; batch size, weight decay and schedule
    are not, and are ours. So is their average of the weights, whose decay is unpublished: it is
    left out here (`--recipe.ema-decay 0.9998` is the 3rd place's).
    """
    return TrainConfig(
        name="published",
        tower=L14_336,
        plan=PlanConfig(lora_rate=0.6, nfz_rate=0.4, lora_rank=256, lora_init="published"),
        head=HeadConfig(width=16384),
        optim=OptimConfig(epochs=5, batch_size=256, lr=1e-4, head_lr=1e-4, warmup=0.2),
        engine=EngineConfig(recompute=True),  # BatchNorm needs the whole batch at once
    )


def tower_training() -> TrainConfig:
    """The demo tower from random weights: every layer learns."""
    return TrainConfig(
        name="tower",
        tower=TowerConfig(weights="fresh"),
        plan=PlanConfig(nfz_rate=1.0, embeddings=True),
        engine=EngineConfig(kind="plain", workers=1, precision="bf16"),
        optim=OptimConfig(epochs=6, batch_size=128, lr=1e-3, head_lr=1e-3, weight_decay=0.05),
    )


def demo_chain() -> ChainConfig:
    """Drawn scenes and the tower in this package; a few minutes on two cores."""
    return ChainConfig(
        prepare=demo_data(), features=demo_features(), probe=probe_demo(), finetune=lora_demo()
    )


def pictures_small_chain() -> ChainConfig:
    """Your pictures through the demo tower (`--prepare.sources.0.path PATH`)."""
    return ChainConfig(
        prepare=pictures_small_data(),
        features=demo_features(),
        probe=probe_small(),
        finetune=lora_demo(),
    )


def pictures_chain() -> ChainConfig:
    """Your pictures through EfficientNet-Lite2 (`--prepare.sources.0.path PATH`)."""
    return ChainConfig(
        prepare=pictures_data(),
        features=lite2_features(),
        probe=probe_lite2(),
        finetune=lora_lite2(),
    )


def l14_336_chain() -> ChainConfig:
    """Your pictures through CLIP ViT-L/14-336 (`--prepare.sources.0.path PATH`)."""
    return ChainConfig(
        prepare=pictures_l14_336_data(),
        features=l14_336_features(),
        probe=probe_l14_336(),
        finetune=lora_l14_336(),
    )


def l14_chain() -> ChainConfig:
    """Your pictures through CLIP ViT-L/14 at 224 px (`--prepare.sources.0.path PATH`)."""
    return ChainConfig(
        prepare=pictures_l14_data(),
        features=l14_features(),
        probe=probe_l14(),
        finetune=last_layers_l14(),
    )


def demo_search() -> SearchConfig:
    """Six trials of three epochs on 0.4 of the demo's rows; about six minutes, calculated."""
    return demo_full_search().replace(
        {"trials": 6, "base.optim.epochs": 3, "base.optim.share": 0.4, "probe.optim.epochs": 6}
    )


def demo_full_search() -> SearchConfig:
    """LoRA, unfreezing and head width on the demo tower: eight trials on all rows."""
    return SearchConfig(
        base=lora_demo().replace({"engine.workers": 1, "optim.epochs": 4}), probe=probe_demo()
    )


def l14_336_search() -> SearchConfig:
    """LoRA, unfreezing and head width on CLIP ViT-L/14-336."""
    return SearchConfig(
        base=lora_l14_336().replace({"engine.micro_batch": 0, "engine.recompute": True}),
        probe=heads_l14_336(),
        lora_rates=(0.0, 0.2, 0.4, 0.6),
        nfz_rates=(0.0, 0.125, 0.25, 0.4),
        head_widths=(0, 4096, 16384),
        trials=24,
    )


def demo_plan() -> ScaleConfig:
    """The demo's chain on this machine."""
    return ScaleConfig(chain=demo_chain(), pictures=(5_200, 100_000), pictures_per_prompt=2.0)


def pictures_plan() -> ScaleConfig:
    """EfficientNet-Lite2 on this machine."""
    return ScaleConfig(chain=pictures_chain(), pictures=(1_000, 100_000, 1_000_000))


def l14_336_plan() -> ScaleConfig:
    """CLIP ViT-L/14-336 on eight H100."""
    return ScaleConfig(chain=l14_336_chain(), node="p5.48xlarge")


def competition_pictures() -> GenerateConfig:
    """Stable Diffusion 2.0 as in the competition: 768 px, 50 DDIM steps.

    Source: the hosts' description (768-v-ema, 50 steps). Guidance is unpublished; 9 is the default
    of Stability AI's script, and the 2nd place found no difference to 7.5.
    """
    return GenerateConfig(
        sampling=SamplingConfig(scheduler="ddim", guidance=9.0, width=768, height=768)
    )


def fast_pictures() -> GenerateConfig:
    """Stable Diffusion 2.0 in 16 DPM-Solver++ steps: a third of the time.

    Source: the 2nd place, who made eight million pictures this way.
    """
    return competition_pictures().replace({"sampling.scheduler": "dpm++", "sampling.steps": 16})


def sd15_pictures() -> GenerateConfig:
    """Stable Diffusion 1.5: 512 px, 50 steps."""
    return GenerateConfig(sampling=SamplingConfig(width=512, height=512))


def sdxl_pictures() -> GenerateConfig:
    """Stable Diffusion XL: 1024 px, 30 steps."""
    return GenerateConfig(
        sampling=SamplingConfig(steps=30, guidance=5.0, width=1024, height=1024),
        pipeline=PipelineConfig(batch_size=4, vae_slicing=True),
    )


def turbo_pictures() -> GenerateConfig:
    """SD-Turbo and SDXL-Turbo: one step without guidance, 512 px."""
    return GenerateConfig(
        sampling=SamplingConfig(steps=1, guidance=0.0, width=512, height=512),
        pipeline=PipelineConfig(batch_size=16),
    )


def lcm_pictures() -> GenerateConfig:
    """Latent consistency models: four steps, 512 px."""
    return turbo_pictures().replace(
        {"sampling.scheduler": "lcm", "sampling.steps": 4, "sampling.guidance": 1.0}
    )


PREPARE = {
    "demo": demo_data,
    "tower": tower_data,
    "pictures": pictures_data,
    "pictures-small": pictures_small_data,
    "pictures-l14": pictures_l14_data,
    "pictures-l14-336": pictures_l14_336_data,
}
FEATURES = {
    "demo": demo_features,
    "lite2": lite2_features,
    "lite2-sizes": lite2_sizes_features,
    "l14": l14_features,
    "l14-336": l14_336_features,
}
TRAIN = {
    "probe-demo": probe_demo,
    "lora-demo": lora_demo,
    "probe-lite2": probe_lite2,
    "probe-lite2-sizes": probe_lite2_sizes,
    "lora-lite2": lora_lite2,
    "probe-l14": probe_l14,
    "last-layers-l14": last_layers_l14,
    "probe-l14-336": probe_l14_336,
    "lora-l14-336": lora_l14_336,
    "lora-published": lora_published,
    "third-place": third_place,
    "sixth-place": sixth_place,
    "twelfth-place": twelfth_place,
    "tower": tower_training,
}
EVALUATE = {"default": EvaluateConfig}
PREDICT = {"default": PredictConfig}
AVERAGE = {"default": AverageConfig}
BLEND = {"default": BlendConfig}
CALIBRATE = {"default": CalibrateConfig}
EXPORT = {"default": ExportConfig}
CHAINS = {
    "demo": demo_chain,
    "pictures": pictures_chain,
    "pictures-small": pictures_small_chain,
    "l14": l14_chain,
    "l14-336": l14_336_chain,
}
GENERATE = {
    "competition": competition_pictures,
    "fast": fast_pictures,
    "sd15": sd15_pictures,
    "sdxl": sdxl_pictures,
    "turbo": turbo_pictures,
    "lcm": lcm_pictures,
}
SEARCH = {"demo": demo_search, "demo-full": demo_full_search, "l14-336": l14_336_search}
PLANS = {"demo": demo_plan, "pictures": pictures_plan, "l14-336": l14_336_plan}
