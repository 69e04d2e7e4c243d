"""SetFit trains and predicts, in the environment that `setfit_comparison` made; reads and writes JSON, no pickle.

    python setfit_worker.py TASK.json ANSWER.json

It imports nothing of sonde, which that environment need not have.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Train on `texts` and `labels`, predict `asked`; labels come back as they were given."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    classes = sorted(set(task["labels"]))
    started = time.perf_counter()
    model = SetFitModel.from_pretrained(task["backbone"], local_files_only=True)
    rows = Dataset.from_dict({"text": task["texts"], "label": [classes.index(label) for label in task["labels"]]})
    settings = TrainingArguments(
        output_dir=task["folder"], seed=task["seed"], num_epochs=1, max_steps=task["max_steps"],
        batch_size=16, save_strategy="no", report_to="none", show_progress_bar=False,
    )  # fmt: skip
    Trainer(model=model, args=settings, train_dataset=rows).train()
    trained = time.perf_counter()
    probabilities = model.predict_proba(task["asked"], as_numpy=True)  # row class
    done = time.perf_counter()
    return {
        "classes": classes,
        "probabilities": probabilities.astype(float).tolist(),
        "seconds": {"training": trained - started, "inference": done - trained},
        "versions": {name: version(name) for name in ("setfit", "sentence-transformers", "transformers", "torch")},
    }


def main() -> None:
    """Read the task, write the answer."""
    task, answer = (Path(argument) for argument in sys.argv[1:3])
    answer.write_text(json.dumps(work(json.loads(task.read_text(encoding="utf-8")))), encoding="utf-8")


if __name__ == "__main__":
    main()
