"""SetFit trains and predicts, in the environment that `setfit_comparison` made; reads and writes JSON, no pickle.

    python setfit_worker.py FOLDER

A line on standard input is a task, a line on standard output its answer; the model stays in memory. The first task
trains, those after it predict. It imports nothing of sonde, which that environment need not have.
"""

import importlib
import json
import os
import sys
import time
from importlib.metadata import version
from typing import Any


def trained(task: dict[str, Any], folder: str) -> Any:
    """A model of `texts` and `labels`; these are 0, 1, ..., each of them there."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    model = SetFitModel.from_pretrained(task["backbone"], local_files_only=True)
    rows = Dataset.from_dict({"text": task["texts"], "label": task["labels"]})
    settings = TrainingArguments(
        output_dir=folder, seed=task["seed"], num_epochs=1, max_steps=task["max_steps"],
        batch_size=task["batch_rows"], save_strategy="no", report_to="none", show_progress_bar=False,
    )  # fmt: skip
    Trainer(model=model, args=settings, train_dataset=rows).train()
    return model


def main() -> None:
    """Answer until the other side closes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the libraries print is no answer
    for library in ("datasets", "setfit"):
        importlib.import_module(library)  # before the clock starts
    model = None
    for line in sys.stdin:
        task, began = json.loads(line), time.process_time()
        answer: dict[str, Any] = {}
        if model is None:
            model = trained(task, sys.argv[1])
            names = ("setfit", "sentence-transformers", "transformers", "torch")
            answer["versions"] = {name: version(name) for name in names}
        else:
            answer["probabilities"] = model.predict_proba(task["asked"], as_numpy=True).tolist()  # row class
        answer["cpu_seconds"] = time.process_time() - began
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
