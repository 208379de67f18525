import pytest
import yaml
from huggingface_hub import ModelCard

from monosoup_cli import __version__
from monosoup_cli.outputs.model_card import Parent, library_of, model_card, read_card_metadata

COMMITS = "1" * 40, "2" * 40, "3" * 40
BASE = Parent("base", "org/base", "org/base", COMMITS[0])
TUNED = Parent("fine-tuned", "hf://org/tuned@v1", "org/tuned", COMMITS[1])
OTHER = Parent("fine-tuned", "org/other", "org/other", COMMITS[2])
LOCAL = Parent("fine-tuned", "/home/somebody/secret/clip.pt")
HOSTILE = [
    "two\nlines",
    "---",
    "\n---\nlicense: mit\n---\n",
    "a\r---\r",
    "\x1b[31mred",
    "# [x](y) <b>`*_$",
    "x`y``z",
    "`",
    "\u2028---",
    "\u202ereversed",
    "\udcff",
    "a: b",
    "",
]


def made(title="out", method="A method.", command="monosoup edit", parents=(BASE, TUNED), **options):
    options = {"inherited": {}, "library": None, **options}
    return model_card(title, method, command, list(parents), "@misc{x}", **options).decode()


def metadata(text):
    """As the Hub's library reads it."""
    return ModelCard(text).data.to_dict()


def test_the_card_names_what_the_weights_are_made_of():
    card = made(command="monosoup edit org/base org/tuned -o out", parents=[BASE, TUNED, LOCAL])
    body = card.split("---\n", 2)[2].splitlines()
    assert body[1] == "# out"
    assert body[3] == "A method."
    assert body[5:8] == [
        f"- base: `org/base@{COMMITS[0]}`",
        f"- fine-tuned: `org/tuned@{COMMITS[1]}`",
        "- fine-tuned: `clip.pt`",
    ]
    assert body[9] == f"Made with `monosoup` {__version__}:"
    assert body[11] == "    monosoup edit org/base org/tuned -o out"
    assert body[-3:] == ["```bibtex", "@misc{x}", "```"]
    assert "somebody" not in card
    assert "://" not in card


def test_no_token_stands_in_a_card():
    token = "hf_" + "Ab1" * 11
    text = made(title=f"out-{token}", command=f"monosoup edit -o out-{token}")
    assert token not in text
    assert token[:12] not in text.replace("\\", "")
    assert "# out-hf\\_…" in text
    assert "-o out-hf_…" in text


def test_a_repository_without_a_known_commit_is_named_alone():
    assert "- base: `org/base`\n" in made(parents=[Parent("base", "org/base", "org/base")])


def test_the_metadata_lists_known_repositories_and_the_fine_tuned_first():
    found = metadata(made(parents=[BASE, TUNED, LOCAL, OTHER, TUNED], library="transformers"))
    assert found == {
        "base_model": ["org/tuned", "org/other", "org/base"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["monosoup", "merge"],
    }


def test_of_local_files_the_metadata_has_tags_alone():
    assert metadata(made(parents=[LOCAL])) == {"tags": ["monosoup", "merge"]}


def test_only_what_stays_true_is_inherited():
    kept = {
        "license": "other",
        "license_name": "llama3",
        "license_link": "LICENSE",
        "language": ["no", "en"],
        "pipeline_tag": "text-generation",
    }
    stale = {
        "model-index": [{"name": "x", "results": []}],
        "tags": ["sota"],
        "datasets": ["d"],
        "base_model": "b/c",
    }
    found = metadata(made(parents=[LOCAL], inherited={**kept, **stale}))
    assert found == {**kept, "tags": ["monosoup", "merge"]}


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_breaks_out_of_its_line(text):
    parents = Parent("base", f"/x/{text}"), Parent("fine-tuned", text, "org/tuned", None)
    card = made(text, text, text, parents)
    assert card.count("\n") == made("a", "b", "c", parents=[LOCAL, TUNED]).count("\n")
    assert all(char.isprintable() for char in card.replace("\n", ""))
    assert len(card.splitlines()) == card.count("\n")
    assert metadata(card) == {
        "base_model": ["org/tuned"],
        "base_model_relation": "merge",
        "tags": ["monosoup", "merge"],
    }


def test_markdown_in_a_title_and_a_name_is_shown_as_it_is():
    card = made("*a* <b> [x](y)", parents=[Parent("base", "a`b``c"), Parent("fine-tuned", "`")])
    assert r"# \*a\* \<b\> \[x\](y)" in card.splitlines()
    assert "- base: ``` a`b``c ```" in card.splitlines()
    assert "- fine-tuned: `` ` ``" in card.splitlines()


def test_inherited_text_cannot_break_the_front_matter():
    inherited = {"license": "mit\n---\n# not ours", "license_link": "---", "language": ["- a", "b: c", "'"]}
    assert metadata(made(parents=[LOCAL], inherited=inherited)) == {
        **inherited,
        "tags": ["monosoup", "merge"],
    }


CARD = """---
license: other
license_name: 'llama3'
license_link: LICENSE  # beside this file
model-index:
- name: x
  results:
  - task: {type: y}
    license: mit
language:
- en
# a comment
- no
pipeline_tag: text-generation
tags:
- z
---
# Model
language: de
---
"""


def test_a_cards_metadata_is_read_as_the_hub_reads_it():
    expected = {
        "license": "other",
        "license_name": "llama3",
        "license_link": "LICENSE",
        "language": ["en", "no"],
        "pipeline_tag": "text-generation",
    }
    assert read_card_metadata(CARD) == expected
    assert read_card_metadata("\ufeff\n" + CARD.replace("\n", "\r\n")) == expected
    assert read_card_metadata("---\nlicense:\n  - mit\n  - apache-2.0\n---") == {
        "license": ["mit", "apache-2.0"]
    }


@pytest.mark.parametrize(
    "front",
    [
        "license: {a: b}",
        "license: [[mit]]",
        "license: [mit, {a: b}]",
        "license:",
        "license: []",
        "license: 'a\n\n\n  b'",
        r'license: "\e[31m"',
        r'license: "a\nb"',
        "license: " + "x" * 501,
        "license: 'open",
        "license: [mit",
        "license: *nobody",
        "license: \x1b",
        "license",
        "licence: mit",
        "license: " + "[" * 1500,
        "license:\n" + "- a\n" * 10_000,
        "license:\n" + " - ? " * 3000,
    ],
)
def test_what_is_malformed_or_no_text_is_not_inherited(front):
    assert read_card_metadata(f"---\n{front}\n---\n# Model") == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# Model",
        "---\nlicense: mit",
        "# Model\n---\nlicense: mit\n---\n",
        "---\n---\n",
        "----\nlicense: mit\n---",
    ],
)
def test_a_card_without_front_matter_hands_on_nothing(text):
    assert read_card_metadata(text) == {}


def test_tags_of_yaml_run_nothing(tmp_path):
    made = tmp_path / "made"
    touch = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{made}']]"
    assert read_card_metadata(f"---\nlicense: {touch}\n---") == {}
    assert not made.exists()


def test_front_matter_with_long_results_is_read():
    results = yaml.dump({"model-index": [{"name": "m", "results": [{"value": n} for n in range(5000)]}]})
    assert len(results) > 1 << 15
    assert read_card_metadata(f"---\n{results}license: mit\n---\n") == {"license": "mit"}


@pytest.mark.parametrize(
    ("config", "names", "library"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, ["config.json"], "transformers"),
        ({"architectures": ["X"]}, [], "transformers"),
        ({"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.30"}, ["config.json"], "diffusers"),
        (None, ["model_index.json", "unet"], "diffusers"),
        ({"model_type": "bert"}, ["config.json", "modules.json"], "sentence-transformers"),
        ({"architecture": "resnet50", "pretrained_cfg": {"tag": "a1_in1k"}}, ["config.json"], "timm"),
        ({"model_type": "llama"}, ["adapter_config.json", "config.json"], "transformers"),  # merged into it
        ({"model_cfg": {}}, ["open_clip_config.json"], "open_clip"),
        ({"model_type": ""}, ["config.json"], None),
        ({}, ["model.safetensors"], None),
        (None, [], None),
    ],
)
def test_the_library_is_told_by_the_folder(config, names, library):
    assert library_of(config, names) == library
