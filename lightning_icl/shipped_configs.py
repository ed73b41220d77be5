"""The configs that come with the package, named as in a clone of it, such as configs/studies/NAME.yaml."""

from pathlib import Path

SHIPPED = Path(__file__).parent / "configs"


def config_file(name: str) -> Path | None:
    """The file of that name here or, failing that, the shipped one; None where there is neither."""
    path = Path(name)
    if path.is_file():
        return path
    inside = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    folders = ("", "studies", "constructed") if len(path.parts) == 1 else ("",)
    found = (SHIPPED.joinpath(folder, *inside) for folder in folders)
    return next((file for file in found if not path.is_absolute() and file.is_file()), None)


def shipped_names() -> list[str]:
    """What the shipped configs are called."""
    return [str(Path("configs") / path.relative_to(SHIPPED)) for path in sorted(SHIPPED.rglob("*.yaml"))]
