"""Which nodes hold a literal text, by the names of their real classes and inputs."""

from typing import Any

import pytest
from comfyui_graphs import node, prompt_of, read, sampled, text

from img2prompt.data.sources.metadata.base import NoPrompt

LIST = 6  # LiteGraph's shape of an output that is a list
WHOLE = ("whole", 0)
NODES = {"fox": node("Text", text="fox"), "whole": node("Text", text="a red fox")}

STRINGS = [
    node("Text Multiline", text="a red fox"),
    node("Text Multiline (Code Compatible)", text="a red fox"),
    node("PrimitiveString", value="a red fox"),
    node("PrimitiveStringMultiline", value="a red fox"),
    node("String Literal", string="a red fox"),
    node("StringConstantMultiline", string="a red fox", strip_newlines=True),
    node("DF_Text_Box", text="a red fox"),
    node("Text_O", text="a red fox"),
    node("JWStringMultiline", text="a red fox"),
    node("CR Prompt Text", prompt="a red fox"),
    node("ttN text", text="a red fox"),
    node("easy positive", positive="a red fox"),
    node("Primitive string multiline [Crystools]", string="a red fox"),
    node("Text (LoraManager)", text="a red fox"),
    node("LayerUtility: TextBox", text="a red fox"),
    node("Power Prompt (rgthree)", prompt="a red fox", insert_lora="none", opt_clip=("m", 1)),
    node("Text Multiline", text=WHOLE),
    node("StringConcatenate", string_a="a red", string_b=("fox", 0), delimiter=" "),
    node("CR Text Concatenate", text1="a ", text2="red ", text3=("fox", 0), separator=""),
    node("Text Concatenate", **{"delimiter": " ", "clean_whitespace": "true"})
    | {
        "inputs": {
            "delimiter": " ",
            "clean_whitespace": "true",
            "text_a": "a red",
            "text_b": ("fox", 0),
        }
    },
    node("ttN text3BOX_3WAYconcat", text1="a ", text2="red ", text3=("fox", 0), delimiter=""),
    node("easy promptConcat", prompt1="a red", prompt2=("fox", 0), separator=" "),
    node("JoinStringMulti", inputcount=2, string_1="a red", string_2=("fox", 0), delimiter=" "),
    node("ImpactWildcardProcessor", wildcard_text="a __c__", populated_text="a red fox", seed=3),
    node("PromptStashSaver", use_input_text=False, text=("fox", 0), prompt_text="a red fox"),
    node("PromptStashSaver", use_input_text=True, text=WHOLE, prompt_text="an older text"),
    node("ShowText|pysssss", text=WHOLE, text_0="an older text"),
    node("easy showAnything", anything=WHOLE),
    node("PreviewAny", source=WHOLE),
    node("Text to Console", text=WHOLE, label="prompt"),
    node("Reroute", **{"": WHOLE}),
]


@pytest.mark.parametrize("string", STRINGS, ids=lambda string: string["class_type"])
def test_text_given_by_a_link(string: dict[str, Any]) -> None:
    assert prompt_of(sampled(p=text(("t", 0)), t=string, **NODES)) == "a red fox"


def test_braces_and_wildcards_that_an_encoder_received_are_literal() -> None:
    for template in ("a {red|blue} fox", "a __colour__ fox"):
        assert prompt_of(sampled(p=text(template))) == template
        assert prompt_of(sampled(p=text(("t", 0)), t=node("Text", text=template))) == template


COMPUTED = [
    node("Florence2Run", image=("i", 0), text_input="", task="caption"),
    node("OllamaGenerate", prompt="Improve: a fox", model="llama"),
    node("StringReplace", string="a fox", find="fox", replace="dog"),
    node("SDXLPromptStyler", text_positive="a fox", text_negative="", style="noir"),
    node("DPRandomGenerator", text="a {large|small} fox", seed=77, autorefresh="No"),
    node("DPMagicPrompt", text="a fox", seed=77),
    node("Stable Wildcards", prompt="a {blue|red} duck", seed=3, version=1),
    node("ImpactWildcardProcessor", wildcard_text="a __c__", populated_text="", seed=3),
    node("easy wildcards", text="a __c__", seed=3),
    node("CR Text Cycler", text="a fox\na dog", repeats=1, loops=1),
    node("Text Random Line", text="a fox\na dog", seed=3),
    node("Text Load Line From File", file_path="", multiline_text="a fox", index=0),
    node("easy promptLine", prompt="a fox\na dog", start_index=0, max_rows=1000),
    node("GoogleTranslateTextNode", from_translate="auto", to_translate="en", text="un renard"),
    node("DeepTranslatorTextNode", text=WHOLE),
    node("Text Translate", text=WHOLE),
    node("PromptExpansion", model_name="gpt2", text="a fox", seed=3),
    node("easy prompt", prompt="a fox", subject="none", action="none"),
    node("StringFunction|pysssss", action="append", tidy_tags="yes", text_a="a", text_b="fox"),
    node("Text Parse Noodle Soup Prompts", mode="Noodle", noodle_key="__", seed=0, text="a fox"),
    node("Text (LoraManager)", text="a {red|blue} fox"),
    node("A node that nobody knows", text="a fox"),
    node("输入", text="a fox"),
]


@pytest.mark.parametrize("computed", COMPUTED, ids=lambda computed: computed["class_type"])
def test_text_that_is_not_in_the_picture_is_refused(computed: dict[str, Any]) -> None:
    with pytest.raises(NoPrompt, match=r"^computed prompt: node t \(.+\) is not known to hold"):
        read(sampled(p=text(("t", 0)), t=computed, **NODES))


@pytest.mark.parametrize(
    "encoder",
    [
        node("CLIPTextEncode (NSP)", mode="Noodle", noodle_key="__", seed=0, text="a __c__"),
        node("ImpactWildcardEncode", wildcard_text="a __c__", populated_text="", clip=("m", 1)),
        node("BatchPromptSchedule", text='"0": "a fox", "9": "a dog"', clip=("m", 1)),
        node("Prompt (LoraManager)", text="a __c__", clip=("m", 1)),
        node("A conditioning that nobody knows", prompt="a fox"),
    ],
    ids=lambda encoder: encoder["class_type"],
)
def test_encoders_that_compute_their_text_are_refused(encoder: dict[str, Any]) -> None:
    with pytest.raises(NoPrompt, match=r"^computed prompt: node p \(.+\) is not known to hold"):
        read(sampled(p=encoder))


def test_loaders_that_expand_wildcards() -> None:
    loader = node("easy fullLoader", positive="a __c__", negative="", ckpt_name="x")
    with pytest.raises(NoPrompt, match=r"^computed prompt: node l \(easy fullLoader\)"):
        read(sampled(("l", 1), l=loader))
    loader["class_type"] = "Efficient Loader"
    assert prompt_of(sampled(("l", 1), l=loader)) == "a __c__"


def test_conditionings_of_an_unknown_node_are_not_joined() -> None:
    unknown = node("ConditioningThing", conditioning_1=("fox", 0), conditioning_2=("dog", 0))
    graph = sampled(p=unknown, fox=text("a fox"), dog=text("a dog"))
    with pytest.raises(NoPrompt, match=r"undecided prompt: node p \(ConditioningThing\) passes on"):
        read(graph)


def drawn(node_id: str, class_type: str, *texts: Any) -> dict[str, Any]:
    """Return the drawing of a graph with one display node, which holds texts of the run."""
    return {"nodes": [{"id": node_id, "type": class_type, "widgets_values": list(texts)}]}


@pytest.mark.parametrize("values", [["a red fox"], ["", "a red fox"], [["a red fox"]]])
def test_a_computed_text_that_a_display_node_stored(values: list[Any]) -> None:
    wild = node("DPRandomGenerator", text="a {red|blue} fox", seed=3)
    for shows in ("ShowText|pysssss", "easy showAnything"):
        graph = sampled(p=text(("t", 0)), t=node(shows, text=("wild", 0)), wild=wild)
        assert read(graph, drawn("t", shows, *values)).prompt == "a red fox"
        with pytest.raises(NoPrompt, match=r"computed prompt: node wild \(DPRandomGenerator\)"):
            read(graph)


def test_a_stored_text_is_not_taken_from_nodes_that_do_not_write_it() -> None:
    graph = sampled(p=text(("t", 0)), t=node("DPRandomGenerator", text="a {red|blue} fox", seed=3))
    with pytest.raises(NoPrompt, match="computed prompt"):
        read(graph, drawn("t", "DPRandomGenerator", "a {red|blue} fox"))
    graph["t"] = node("ShowText|pysssss", text=("whole", 0))
    assert read(graph | NODES, drawn("t", "ShowText|pysssss", "older")).prompt == "a red fox"


def test_several_stored_texts_are_a_list() -> None:
    wild = node("CR Text Cycler", text="a fox\na dog", repeats=1)
    graph = sampled(p=text(("t", 0)), t=node("ShowText|pysssss", text=("wild", 0)), wild=wild)
    with pytest.raises(NoPrompt, match=r"computed prompt: node wild \(CR Text Cycler\)"):
        read(graph, drawn("t", "ShowText|pysssss", ["a fox", "a dog"]))


def test_a_list_of_texts_is_refused() -> None:
    graph = sampled(p=text(("t", 0)), t=node("Text", text="a fox\na dog"))
    outputs = [{"name": "STRING", "shape": LIST}, {"name": "show_text"}]
    with pytest.raises(NoPrompt, match=r"node t \(Text\) returns a list"):
        read(graph, {"nodes": [{"id": "t", "outputs": outputs}]})
    assert read(graph, {"nodes": [{"id": "t", "outputs": outputs[1:]}]}).prompt == "a fox\na dog"


def test_a_list_of_texts_in_a_subgraph_is_refused() -> None:
    cycler = {"id": 21, "type": "Text", "outputs": [{"shape": LIST}]}
    subgraphs = [
        {"id": "inner", "nodes": [cycler]},
        {"id": "outer", "nodes": [{"id": 5, "type": "inner"}]},
        {"id": "endless", "nodes": [{"id": 1, "type": "endless"}, {"id": 2, "type": "endless"}]},
    ]
    drawing = {
        "nodes": [{"id": 30, "type": "outer"}, {"id": 31, "type": "endless"}],
        "definitions": {"subgraphs": subgraphs},
    }
    graph = sampled(p=text(("30:5:21", 0)), **{"30:5:21": node("Text", text="a fox\na dog")})
    with pytest.raises(NoPrompt, match=r"node 30:5:21 \(Text\) returns a list"):
        read(graph, drawing)


WORDS = node("Text (LoraManager)", text="ukiyo-e woodblock")


def test_trigger_words_come_before_the_prompt() -> None:
    encoder = node("Prompt (LoraManager)", text="a fox", clip=("m", 1), trigger_words1=("w", 0))
    assert prompt_of(sampled(p=encoder, w=WORDS)) == "ukiyo-e woodblock, a fox"
    encoder["inputs"] |= {"trigger_words2": ("v", 0), "trigger_words3": ""}
    graph = sampled(p=encoder, w=WORDS, v=node("Text", text="ink"))
    assert prompt_of(graph) == "ukiyo-e woodblock, ink, a fox"
    encoder["inputs"]["text"] = ""
    assert prompt_of(graph) == "ukiyo-e woodblock, ink"


def toggle(words: Any, **inputs: Any) -> dict[str, Any]:
    return node("TriggerWord Toggle (LoraManager)", toggle_trigger_words=words, **inputs)


INK, OLD = {"text": "ink", "active": True, "strength": 1.2}, {"text": "old", "active": False}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (toggle([INK, OLD], orinalMessage="ink, old"), "ink, a fox"),
        (toggle({"__value__": [INK, OLD]}), "ink, a fox"),
        (toggle('[{"text": "ink", "active": true}]'), "ink, a fox"),
        (toggle([INK, OLD], allow_strength_adjustment=True), "(ink:1.20), a fox"),
        (toggle([OLD]), "a fox"),
        (toggle([], orinalMessage="ink", trigger_words=("loader", 2)), "ink, a fox"),
        (toggle([], orinalMessage=""), "a fox"),
    ],
)
def test_trigger_words_that_are_switched_on(words: dict[str, Any], expected: str) -> None:
    encoder = node("Prompt (LoraManager)", text="a fox", clip=("m", 1), trigger_words1=("w", 0))
    assert prompt_of(sampled(p=encoder, w=words)) == expected


@pytest.mark.parametrize("words", [[], "ink", 3, [{"items": [INK]}], [3]])
def test_trigger_words_that_the_graph_does_not_hold(words: Any) -> None:
    encoder = node("Prompt (LoraManager)", text="a fox", clip=("m", 1), trigger_words1=("w", 0))
    with pytest.raises(NoPrompt, match=r"computed prompt: node w \(TriggerWord Toggle"):
        read(sampled(p=encoder, w=toggle(words)))
