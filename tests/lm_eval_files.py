"""Small files as lm-evaluation-harness leaves them."""

import json


def of_lm_eval(folder, **tasks):
    """Results with samples of a task each: its metric, whether higher is better, and a text of 0 and 1."""
    folder.mkdir(parents=True)
    results, directions = {}, {}
    for task, (metric, is_higher_better, answers) in tasks.items():
        results[task] = {f"{metric},none": sum(map(int, answers)) / len(answers)}
        directions[task] = {metric: is_higher_better}
        samples = [{"doc_id": number, metric: int(one)} for number, one in enumerate(answers)]
        text = "".join(f"{json.dumps(sample)}\n" for sample in samples)
        (folder / f"samples_{task}_2026-01-01T00-00-00.jsonl").write_text(text)
    content = {"results": results, "higher_is_better": directions}
    (folder / "results_2026-01-01T00-00-00.json").write_text(json.dumps(content))
    return folder
