"""The configs that come with the package, named as in a clone of it: configs/NAME.yaml, configs/studies/NAME.yaml."""

from pathlib import Path

SHIPPED = Path(__file__).parent / "configs"


def config_file(name: str) -> Path | None:
    """The file of that name here or, failing that, the shipped one; None where there is neither."""
    path = Path(name)
    if path.is_file():
        return path
    folders = path.parts[:-1]
    if folders in ((), ("configs",)) and (SHIPPED / path.name).is_file():
        return SHIPPED / path.name
    if folders in ((), ("studies",), ("configs", "studies")) and (SHIPPED / "studies" / path.name).is_file():
        return SHIPPED / "studies" / path.name
    return None


def shipped_names() -> list[str]:
    """What the shipped configs are called."""
    return [str(Path("configs") / path.relative_to(SHIPPED)) for path in sorted(SHIPPED.rglob("*.yaml"))]
