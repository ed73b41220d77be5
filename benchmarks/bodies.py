"""Are the functions whole thoughts? How many lines the bodies of each package have, and how many of them are comments.

    python benchmarks/bodies.py [FOLDER ...]

A body is a function's lines of code, without its docstring, blank lines and comments; abstract ones (a docstring
alone) do not count. nanoGPT, torchmetrics, equinox and tracr have medians of 6 to 10, and nine in ten of their bodies
are of at most 28 to 36 lines. A median of 2 is a thought in pieces: a reader crosses many doors.
"""

import argparse
import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


def bodies(source: str) -> Iterator[int]:
    """The number of lines of each function's body."""
    lines = [line.strip() for line in source.splitlines()]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef):
            continue
        body = node.body[ast.get_docstring(node) is not None :]
        if body and ast.unparse(body) != "...":
            of_code = lines[body[0].lineno - 1 : body[-1].end_lineno]
            yield sum(bool(line) and not line.startswith("#") for line in of_code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    given, package = parser.parse_args().folders, ROOT / "lightning_icl"
    folders = given or sorted({path.parent for path in package.rglob("*.py")} | {ROOT / "callbacks"})
    print(f"{'package':<32} {'lines':>6} {'bodies':>6} {'median':>6} {'p90':>4} {'max':>4} {'comments':>8}")
    for folder in folders:
        sources = [path.read_text() for path in sorted(folder.glob("*.py"))]
        found = sorted(n for source in sources for n in bodies(source))
        lines = [line.strip() for source in sources for line in source.splitlines()]
        comments = sum(line.startswith("#") or "  # " in line for line in lines) / len(lines)
        if found:
            name = folder.resolve().relative_to(ROOT)
            print(
                f"{name!s:<32} {len(lines):>6} {len(found):>6} {statistics.median(found):>6g} "
                f"{found[int(0.9 * (len(found) - 1))]:>4} {found[-1]:>4} {comments:>8.1%}"
            )


if __name__ == "__main__":
    main()
