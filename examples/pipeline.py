"""Pipeline: activations as features of scikit-learn, and recipes as values of a grid."""

# ruff: noqa: T201 - a script for a terminal may print
# %% Labelled messages
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sonde
from sonde.tables import read_table

rows = read_table(Path(__file__).parent / "support.csv").columns
texts, labels = rows["text"], rows["label"]

# %% A layer of a frozen model in a pipeline of one's own
for site in ("hidden.2", "hidden.4", "hidden.-1"):
    features = sonde.ActivationFeatures(site, "mean")
    pipeline = make_pipeline(features, StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    print(f"{site:10} {cross_val_score(pipeline, texts, labels, cv=3).mean():.3f}")

# %% Recipes side by side; texts are read once, later fits find them in the store
search = GridSearchCV(sonde.TextClassifier(), {"recipe": ["lexical", "linear"]}, cv=3).fit(texts, labels)
print(search.best_params_, f"{search.best_score_:.3f}")
