"""Make the files of lm-evaluation-harness in this folder: three tiny models, four tasks and a group.

Needs lm-eval 0.4.13, transformers and torch, and no network:

    python make.py FOLDER && cp -r FOLDER/evals/models__* tests/evaluation/harnesses/lm_eval/

What is about the machine alone is taken out of the results. The files of clip_benchmark are those of
`clip_benchmark eval --model RN50 --pretrained '' --dataset dummy --task zeroshot_classification` 1.6.2.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = [*map(str, range(30)), *["is", "even", "odd", "true", "false", "plus", "makes", "that", ":", "."]]
MACHINE = ("pretty_env_info", "git_hash", "upper_git_hash", "date", "total_evaluation_time_seconds")
CHOICE = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: tasks/{name}.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: label
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
  - {{metric: brier_score, aggregation: brier_score, higher_is_better: false}}
metadata: {{version: 1.0}}
"""
OTHERS = {
    "sums": """task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<eos>"], max_gen_toks: 4, do_sample: false}
filter_list:
  - name: strict-match
    filter: [{function: regex, regex_pattern: "^(\\\\d+)"}, {function: take_first}]
  - name: flexible-extract
    filter: [{function: regex, group_select: -1, regex_pattern: "(\\\\d+)"}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
""",
    "prose": """task: prose
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/prose.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity, higher_is_better: false}]
metadata: {version: 1.0}
""",
    "numbers": """group: numbers
task: [parity, truth]
aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]
metadata: {version: 1.0}
""",
}
DOCUMENTS = {
    "parity": [{"question": f"{n} is", "choices": ["even", "odd"], "label": n % 2} for n in range(6)],
    "truth": [{"question": f"{n} is even :", "choices": ["true", "false"], "label": n % 2} for n in range(4)],
    "sums": [{"question": f"{n} plus {n} makes", "answer": str(2 * n)} for n in range(3)],
    "prose": [{"text": f"{n} plus {n} makes {2 * n} ."} for n in range(2)],
}


def make(folder: Path) -> None:
    (folder / "tasks").mkdir(parents=True)
    words = {word: number for number, word in enumerate(["<unk>", "<eos>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>"
    )
    config = GPT2Config(
        vocab_size=len(words), n_positions=64, n_embd=8, n_layer=1, n_head=2, initializer_range=1.0
    )
    config.bos_token_id = config.eos_token_id = 1
    for name, documents in DOCUMENTS.items():
        lines = "".join(json.dumps(one) + "\n" for one in documents)
        (folder / "tasks" / f"{name}.jsonl").write_text(lines)
        (folder / "tasks" / f"{name}.yaml").write_text(OTHERS.get(name) or CHOICE.format(name=name))
    (folder / "tasks" / "numbers.yaml").write_text(OTHERS["numbers"])
    for seed, name in enumerate(("base", "finetuned", "edited")):
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(folder / "models" / name)
        fast.save_pretrained(folder / "models" / name)
        command = f"-m lm_eval --model hf --model_args pretrained=models/{name},dtype=float32 --device cpu"
        command += " --tasks numbers,sums,prose --include_path tasks --log_samples --output_path evals"
        subprocess.run([sys.executable, *command.split()], cwd=folder, check=True)
    for path in folder.glob("evals/*/results_*.json"):
        content = json.loads(path.read_text())
        for name in MACHINE:
            del content[name]
        path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
