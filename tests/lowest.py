"""Print the lowest versions that pyproject.toml declares, except of torch, as constraints for pip."""

import re
import tomllib
from pathlib import Path


def lowest(requirements: list[str]) -> list[str]:
    """``name==bound`` for each ``name[extras]>=bound,...``, without torch and packages without a bound."""
    found = (re.match(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)", requirement) for requirement in requirements)
    return [f"{match[1]}=={match[2]}" for match in found if match and match[1] != "torch"]


if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
    bounds = {*lowest(project["dependencies"]), *lowest(project["optional-dependencies"]["test"])}
    print("\n".join(sorted(bounds)))
