"""Serve and call: a saved model answers over HTTP, on this machine alone (extra `serve`)."""

# ruff: noqa: T201 - a script for a terminal may print
# %% Train and save
import json
import tempfile
import threading
import urllib.request
from pathlib import Path

import sonde
from sonde.serve import Settings, open_service
from sonde.tables import read_table

rows = read_table(Path(__file__).parent / "support.csv").columns
folder = Path(tempfile.mkdtemp()) / "support"
sonde.TextClassifier("linear").fit(rows["text"], rows["label"]).save(folder)

# %% Serve: in a terminal this is `sonde serve support`; port 0 takes any that is free
service = open_service({"support": folder}, Settings(port=0))
thread = threading.Thread(target=service.run)
thread.start()

# %% Call, from any language that speaks HTTP and JSON
body = json.dumps({"texts": ["where is my parcel?", "cancel it please"], "alpha": 0.1}).encode()
request = urllib.request.Request(f"{service.url}/v1/classify", body, {"Content-Type": "application/json"})
with urllib.request.urlopen(request) as answer:
    for result in json.load(answer)["results"]:
        print(f"{result['label']:16} {result['probability']:.2f}  perhaps: {', '.join(result['label_set'])}")

# %% Stop: what was accepted is answered first
service.stop()
thread.join()
