"""Put the results table into README.md, from docs/results/tables.json alone.

    python scripts/readme_results.py      rewrites what stands between <!-- results --> and <!-- /results -->

The table is not typed by hand: a test compares README.md with what this script would write.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sonde.bench.tables import to_markdown

CHECKOUT = Path(__file__).resolve().parent.parent
START, END = "<!-- results -->\n", "<!-- /results -->"

ABSENT = (
    "No results are recorded in this checkout. `sonde bench tables` makes them: it fits every recipe on five data sets "
    "and writes `docs/results/`.\n"
)

SHOWN_LLMEMBED = ("llmembed-2 ", "llmembed-15 ")
"""Of LLMEmbed's 15 rows README shows the plain average and the full method; docs/results has all."""


def section(content: Mapping[str, Any] | None) -> str:
    """What stands between the two marks."""
    if content is None:
        return ABSENT
    page = to_markdown(content).splitlines()
    notes = [line for line in page[: page.index("## Accuracy")] if line.startswith(("Measured on", "`bundle`", "**"))]
    head, rule, *rows = _table(page, "## Accuracy")
    rows += [r for r in _table(page, "## Every row of LLMEmbed's Table 1") if r.startswith(_starts())]
    return "\n".join(["Accuracy on the test rows:", "", head, rule, *rows, "", *_apart(notes)])


def _starts() -> tuple[str, ...]:
    return tuple(f"| `{name}" for name in SHOWN_LLMEMBED)


def _table(page: list[str], title: str) -> list[str]:
    """The lines of the first table under a heading."""
    lines: list[str] = []
    for line in page[page.index(title) + 1 :]:
        if line.startswith("|"):
            lines.append(line)
        elif lines or line.startswith("## "):
            break
    return lines


def _apart(lines: list[str]) -> Iterator[str]:
    for line in lines:
        yield from (line, "")


def fill(readme: str, content: Mapping[str, Any] | None) -> str:
    """README with the section renewed."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}{section(content)}{END}{after}"


def load(checkout: Path = CHECKOUT) -> Any:
    """The recorded results, or None."""
    path = checkout / "docs" / "results" / "tables.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def main() -> None:
    """Rewrite README.md."""
    readme = CHECKOUT / "README.md"
    readme.write_text(fill(readme.read_text(encoding="utf-8"), load()), encoding="utf-8")
    sys.stdout.write(f"{readme}\n")


if __name__ == "__main__":
    main()
