"""Nodes that pass on one of several texts or conditionings, by the names of their real inputs."""

from typing import Any

import pytest
from comfyui_graphs import node, prompt_of, read, sampled, text

from img2prompt.data.sources.metadata.base import NoPrompt

FOX, DOG = ("fox", 0), ("dog", 0)
ENCODED = {"fox": text("a fox"), "dog": text("a dog")}
WRITTEN = {"fox": node("CR Text", text="a fox"), "dog": node("PrimitiveString", value="a dog")}
NUMBERS = {
    "two": node("PrimitiveInt", value=2),
    "hop": node("Reroute Primitive", value=("two", 0)),
    "yes": node("Logic Boolean", boolean=1),
    "no": node("easy boolean", value=False),
    "computed": node("easy mathInt", a=1, b=2, operation="add"),
}

DECIDED = [
    (node("CR Text Input Switch", Input=2, text1=FOX, text2=DOG), "a dog"),
    (node("CR Text Input Switch", Input=("hop", 0), text1=FOX, text2=DOG), "a dog"),
    (node("CR Text Input Switch (4 way)", Input=1, text1=FOX, text2=DOG, text3=DOG), "a fox"),
    (node("easy textSwitch", input=1, text1=FOX, text2=DOG), "a fox"),
    (node("easy textIndexSwitch", index=0, text0=FOX, text1=DOG), "a fox"),
    (node("easy anythingIndexSwitch", index=1, value0=FOX, value1=DOG), "a dog"),
    (node("ImpactSwitch", select=2, sel_mode=False, input1=FOX, input2=DOG), "a dog"),
    (node("Text Input Switch", boolean=True, text_a=FOX, text_b=DOG), "a fox"),
    (node("Text Input Switch", boolean_number=("no", 0), text_a=FOX, text_b=DOG), "a dog"),
    (node("Text Input Switch", boolean=("yes", 0), text_a="a fox", text_b=DOG), "a fox"),
    (node("ComfySwitchNode", switch=False, on_false=FOX, on_true=DOG), "a fox"),
    (node("Switch any [Crystools]", boolean=True, on_false=FOX, on_true=DOG), "a dog"),
    (node("Any Switch (rgthree)", any_02=DOG, any_01=FOX), "a fox"),
    (node("Text Selector", select="text2", text1=FOX, text2=DOG), "a dog"),
    (node("Text Selector", select="true", on_true=FOX, on_false=DOG), "a fox"),
]


@pytest.mark.parametrize(("switch", "expected"), DECIDED)
def test_text_that_a_selector_chooses(switch: dict[str, Any], expected: str) -> None:
    assert prompt_of(sampled(p=text(("s", 0)), s=switch, **WRITTEN, **NUMBERS)) == expected


CONDITIONING = [
    (node("CR Conditioning Input Switch", Input=2, conditioning1=FOX, conditioning2=DOG), "a dog"),
    (node("easy conditioningIndexSwitch", index=0, cond0=FOX, cond1=DOG), "a fox"),
    (node("ImpactSwitch", select=1, input1=FOX, input2=DOG), "a fox"),
    (node("LazySwitchKJ", switch=True, on_false=FOX, on_true=DOG), "a dog"),
    (node("Any Switch (rgthree)", any_01=FOX, any_02=DOG), "a fox"),
]


@pytest.mark.parametrize(("switch", "expected"), CONDITIONING)
def test_conditioning_that_a_selector_chooses(switch: dict[str, Any], expected: str) -> None:
    assert prompt_of(sampled(p=switch, **ENCODED)) == expected


UNDECIDED = [
    node("CR Text Input Switch", Input=("computed", 0), text1=FOX, text2=DOG),
    node("CR Text Input Switch", Input=("nowhere", 0), text1=FOX, text2=DOG),
    node("CR Text Input Switch", Input=0, text1=FOX, text2=DOG),
    node("String Picker", index=1, string1=FOX, string2=DOG),
    node("Text Input Switch", boolean=2, text_a=FOX, text_b=DOG),
    node("Text Input Switch", Input=1, text_a=FOX, text_b=DOG),
    node("Text Random Select", text1=FOX, text2=DOG),
    node("ComfySwitchNode", switch=("computed", 0), on_false=FOX, on_true=DOG),
]


@pytest.mark.parametrize("switch", UNDECIDED)
def test_a_choice_that_the_graph_does_not_settle(switch: dict[str, Any]) -> None:
    with pytest.raises(NoPrompt, match=r"^undecided prompt: node s \(.*\) passes on one of 2"):
        read(sampled(p=text(("s", 0)), s=switch, **WRITTEN, **NUMBERS))
    switch = {**switch, "inputs": {k: FOX if v == DOG else v for k, v in switch["inputs"].items()}}
    assert prompt_of(sampled(p=text(("s", 0)), s=switch, **WRITTEN, **NUMBERS)) == "a fox"


def test_a_selected_input_that_is_not_connected() -> None:
    switch = node("CR Text Input Switch", Input=2, text1=FOX)
    with pytest.raises(NoPrompt, match="empty prompt"):
        read(sampled(p=text(("s", 0)), s=switch, **WRITTEN))


def test_a_switch_between_different_texts_is_refused() -> None:
    switch = node("ImpactSwitch", select=("x", 0), input1=("fox", 0), input2=("dog", 0))
    with pytest.raises(NoPrompt, match=r"undecided prompt: node p \(ImpactSwitch\)"):
        read(sampled(p=switch, **ENCODED))
    switch["inputs"]["input2"] = ("fox", 0)
    assert prompt_of(sampled(p=switch, **ENCODED)) == "a fox"
