"""Print the lowest versions that pyproject.toml declares, as constraints for pip: `make lowest`."""

import re
import tomllib
from pathlib import Path


def lowest(requirements: list[str]) -> list[str]:
    """``name==bound`` for each ``name[extras]>=bound,...``; what has no lower bound is left out."""
    found = (re.match(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)", requirement) for requirement in requirements)
    return [f"{match[1]}=={match[2]}" for match in found if match]


if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
    bounds = {*lowest(project["dependencies"]), *lowest(project["optional-dependencies"]["test"])}
    print("\n".join(sorted(bounds)))
