"""Graphs as ComfyUI's nodes link up, by the names of their real inputs."""

from typing import Any

import pytest
from comfyui_graphs import node, prompt_of, read, sampled, sampler, text

from img2prompt.data.sources.metadata.base import NoPrompt

ENCODERS = [
    text("a fox"),
    node("CLIPTextEncodeSDXL", text_g="a fox", text_l="a fox, quality", clip=("model", 1)),
    node("CLIPTextEncodeSDXL", text_g="", text_l="a fox", clip=("model", 1)),
    node("CLIPTextEncodeSDXLRefiner", ascore=6.0, text="a fox", clip=("model", 1)),
    node("CLIPTextEncodeSD3", clip_l="fox", clip_g="fox", t5xxl="a fox", clip=("model", 1)),
    node("CLIPTextEncodeSD3", clip_l="fox", clip_g="a fox", t5xxl=" ", empty_padding="none"),
    node("CLIPTextEncodeFlux", clip_l="fox", t5xxl="a fox", guidance=3.5, clip=("model", 1)),
    node("CLIPTextEncodeHunyuanDiT", bert="fox", mt5xl="a fox", clip=("model", 1)),
    node("CLIPTextEncodeLumina2", system_prompt="be good", user_prompt="a fox"),
    node("TextEncodeQwenImageEdit", prompt="a fox", clip=("model", 1), image=("model", 0)),
]


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder["class_type"])
def test_encoders(encoder: dict[str, Any]) -> None:
    assert prompt_of(sampled(p=encoder)) == "a fox"


A_FOX = {"fox": text("a fox"), "dog": text("a dog,")}
CONDITIONINGS = [
    (node("ConditioningCombine", conditioning_1=("fox", 0), conditioning_2=("dog", 0)), "both"),
    (node("ConditioningConcat", conditioning_to=("fox", 0), conditioning_from=("dog", 0)), "both"),
    (node("ConditioningCombine", conditioning_1=("fox", 0), conditioning_2=("fox", 0)), "fox"),
    (node("ConditioningSetArea", conditioning=("fox", 0), width=8, x=0, strength=1), "fox"),
    (node("ConditioningSetTimestepRange", conditioning=("fox", 0), start=0, end=1), "fox"),
    (node("FluxGuidance", conditioning=("fox", 0), guidance=3.5), "fox"),
    (node("unCLIPConditioning", conditioning=("fox", 0), clip_vision_output=("dog", 0)), "fox"),
    (node("ControlNetApply", conditioning=("fox", 0), control_net=("dog", 0), image=None), "fox"),
    (node("StableCascade_StageB_Conditioning", conditioning=("fox", 0), stage_c=("k", 0)), "fox"),
    (node("Reroute (somebody's)", **{"": ("fox", 0)}), "fox"),
    (
        node("GLIGENTextboxApply", conditioning_to=("fox", 0), text="a dog", clip=("model", 1)),
        "both",
    ),
]


@pytest.mark.parametrize(("middle", "expected"), CONDITIONINGS)
def test_conditionings_between(middle: dict[str, Any], expected: str) -> None:
    metadata = prompt_of(sampled(p=middle, **A_FOX))
    assert metadata == {"fox": "a fox", "both": "a fox, a dog"}[expected]


def test_nodes_that_pass_both_conditionings_on_by_output() -> None:
    both = {"positive": ("fox", 0), "negative": ("dog", 0)}
    control = node("ControlNetApplyAdvanced", control_net=("c", 0), image=("i", 0), **both)
    for slot, positive, negative in ((0, "a fox", "a dog"), (1, "a dog", "a fox")):
        graph = sampled(("c", slot), c=control, **A_FOX)
        graph["k"]["inputs"]["negative"] = ("c", 1 - slot)
        metadata = read(graph)
        assert (metadata.prompt, metadata.negative) == (positive, negative)
    inpaint = node(
        "InpaintModelConditioning", positive=("c", 0), negative=("c", 1), pixels=("i", 0)
    )
    assert prompt_of(sampled(("i", 0), i=inpaint, c=control, **A_FOX)) == "a fox"


def test_guiders_noise_and_sigmas_apart() -> None:
    graph = sampled(
        k=node(
            "SamplerCustomAdvanced",
            **{"noise": ("noise", 0), "guider": ("g", 0), "sampler": ("s", 0)},
            **{"sigmas": ("split", 0), "latent_image": ("empty", 0)},
        ),
        noise=node("RandomNoise", noise_seed=("seed", 0)),
        seed=node("PrimitiveInt", value=99),
        s=node("KSamplerSelect", sampler_name="euler"),
        split=node("SplitSigmas", sigmas=("b", 0), step=3),
        b=node("BasicScheduler", scheduler="simple", steps=4, model=("model", 0)),
        g=node("CFGGuider", positive=("fox", 0), negative=("dog", 0), cfg=3.0),
        **A_FOX,
    )
    metadata = read(graph)
    assert (metadata.prompt, metadata.negative) == ("a fox", "a dog,".rstrip(","))
    assert (metadata.seed, metadata.steps, metadata.cfg, metadata.sampler) == (99, 4, 3.0, "euler")
    graph["g"] = node("BasicGuider", conditioning=("fox", 0), model=("model", 0))
    metadata = read(graph)
    assert (metadata.prompt, metadata.negative, metadata.cfg) == ("a fox", "", None)
    graph["g"] = node("DualCFGGuider", cond1=("fox", 0), cond2=("dog", 0), negative=("n", 0))
    assert read(graph).prompt == "a fox, a dog"


def test_the_sampler_of_the_saved_picture_is_taken() -> None:
    graph = sampled(
        p=text("a fox"),
        unused=sampler(("long", 0)),
        long=text("a much longer prompt of a sampler whose picture is only looked at"),
        look=node("PreviewImage", images=("other", 0)),
        other=node("VAEDecode", samples=("unused", 0)),
    )
    assert prompt_of(graph) == "a fox"


def test_the_last_sampler_gives_the_prompt_and_the_first_the_settings() -> None:
    graph = sampled(
        k=sampler(("fox", 0), ("up", 0), seed=1, steps=9, denoise=0.5),
        up=node("LatentUpscale", samples=("first", 0)),
        first=sampler(("dog", 0), seed=77, steps=30),
        **A_FOX,
    )
    metadata = read(graph)
    assert (metadata.prompt, metadata.seed, metadata.steps) == ("a fox", 77, 30)
    graph["up"] = node("VAEEncode", pixels=("big", 0), vae=("model", 2))
    graph["big"] = node("ImageUpscaleWithModel", image=("small", 0), upscale_model=("u", 0))
    graph["small"] = node("VAEDecode", samples=("first", 0), vae=("model", 2))
    assert read(graph).seed == 77


def test_pictures_of_several_prompts_are_refused() -> None:
    graph = sampled(("fox", 0), k2=sampler(("dog", 0)), **A_FOX)
    graph["decode2"] = node("VAEDecode", samples=("k2", 0))
    for extra in (
        {"save2": node("SaveImage", images=("decode2", 0))},
        {"save": node("SaveImage", images=("blend", 0))}
        | {"blend": node("ImageBlend", image1=("decode", 0), image2=("decode2", 0))},
    ):
        with pytest.raises(NoPrompt, match="undecided prompt: 2 prompts"):
            read(graph | extra)
    graph["k2"] = sampler(("fox", 0))
    assert prompt_of(graph | {"save2": node("SaveImage", images=("decode2", 0))}) == "a fox"


def test_detailers_and_pipes() -> None:
    graph = sampled(p=text("a fox"), face=text("a face"))
    graph["save"] = node("SaveImage", images=("detail", 0))
    graph["detail"] = node("FaceDetailer", image=("decode", 0), positive=("face", 0), seed=1)
    assert prompt_of(graph) == "a fox"
    pipe = {
        "save": node("Image Save", images=("easy", 1)),
        "easy": node("easy kSampler", pipe=("settings", 0), steps=3),
        "settings": node("easy preSampling", pipe=("loader", 0), seed=3),
        "loader": node("easy fullLoader", positive="a fox", negative="bad", ckpt_name="x"),
    }
    assert prompt_of(pipe) == "a fox"
    basic = {
        "to": node("ToBasicPipe", model=("model", 0), positive=("fox", 0), negative=("dog", 0)),
        "from": node("FromBasicPipe", basic_pipe=("to", 0)),
    }
    graph = sampled(("from", 3), **basic, **A_FOX)
    graph["k"]["inputs"]["negative"] = ("from", 4)
    metadata = read(graph)
    assert (metadata.prompt, metadata.negative) == ("a fox", "a dog")
    loader = node("Efficient Loader", positive="a fox", negative="a dog", ckpt_name="x")
    assert prompt_of(sampled(("loader", 1), loader=loader)) == "a fox"


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        ({"a": node("LoadImage", image="x.png")}, "no prompt: none of the graph's 1 nodes"),
        (sampled(), r"empty prompt: no text leads to node k"),
        (sampled(None), r"empty prompt: no text leads to node k"),
        (sampled(p=text("  ")), r"empty prompt"),
        (sampled(p=text(("p", 0))), r"empty prompt"),
        (
            sampled(
                p=node("ConditioningSetArea", conditioning=("q", 0)),
                q=node("ConditioningSetArea", conditioning=("p", 0)),
            ),
            "empty prompt",
        ),
        (sampled(p=node("ConditioningZeroOut", conditioning=("fox", 0)), **A_FOX), "empty prompt"),
        (sampled(p=text("a" * 100_001)), "undecided prompt: the text has more than"),
    ],
)
def test_graphs_without_a_prompt(graph: dict[str, Any], reason: str) -> None:
    with pytest.raises(NoPrompt, match=f"^{reason}"):
        read(graph)


def test_cycles_are_cut_and_the_rest_is_read() -> None:
    combine = node("ConditioningCombine", conditioning_1=("p", 0), conditioning_2=("fox", 0))
    assert prompt_of(sampled(p=combine, **A_FOX)) == "a fox"
    graph = sampled(p=text("a fox"))
    graph["empty"] = node("LatentUpscale", samples=("k", 0))
    assert read(graph).seed == 5
    graph["decode"] = node("ImageSharpen", image=("save", 0), samples=("k", 0))
    assert prompt_of(graph) == "a fox"


def test_chains_that_are_too_deep_or_double_at_each_node() -> None:
    chain = {f"c{n}": node("FluxGuidance", conditioning=(f"c{n + 1}", 0)) for n in range(5000)}
    with pytest.raises(NoPrompt, match="undecided prompt: the graph is more than 60 links deep"):
        read(sampled(("c0", 0), **chain))
    double = {
        f"c{n}": node("Combine", conditioning_1=(f"c{n + 1}", 0), conditioning_2=(f"c{n + 1}", 0))
        for n in range(50)
    }
    assert prompt_of(sampled(("c0", 0), **double, c50=text("a fox"))) == "a fox"
    words = {
        f"s{n}": node("Join", string_a=(f"s{n + 1}", 0), string_b=(f"s{n + 1}", 0), delimiter=" ")
        for n in range(50)
    }
    with pytest.raises(NoPrompt, match="undecided prompt: the text has more than"):
        read(sampled(p=text(("s0", 0)), **words, s50=node("Text", text="fox")))


@pytest.mark.parametrize(
    "broken",
    [
        {"save": {"class_type": "SaveImage"}},
        {"save": None, "n": 3, "empty": []},
        {"model": {"class_type": 5, "inputs": {}}},
        {"extra": {"class_type": "X", "inputs": {"a": [[], 0], "b": [{}, "x"], "c": [1, True]}}},
        {"extra": {"class_type": "SaveImage", "inputs": {"images": ["nowhere", 0]}}},
    ],
)
def test_broken_nodes_cost_only_themselves(broken: dict[str, Any]) -> None:
    assert prompt_of(sampled(p=text("a fox")) | broken) == "a fox"


@pytest.mark.parametrize("workflow", [[], 3, {"nodes": 3}, {"nodes": [1, {"outputs": [2]}]}])
def test_broken_workflows_are_ignored(workflow: Any) -> None:
    assert read(sampled(p=text("a fox")), workflow).prompt == "a fox"
