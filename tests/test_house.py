"""The house rules of the source tree: who may import whom, how long a file may be, that every room says what it is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

# From the top of the house to the bottom: a room imports only rooms below it.
ROOMS = (
    *("__main__", "cli", "evaluate", "train", "generate", "convert", "model", "sharding", "compilation_cache"),
    *("processes", "launchers", "data", "tasks", "config_values", "config"),
)
# Rooms that stand aside: what they may import, and who may import them.
ASIDE = {"data_prep": {"tasks", "errors"}, "configs": {"config", "errors"}, "errors": set()}
MAY_IMPORT = ASIDE | {
    room: {*ROOMS[level + 1 :], "errors", *(("configs", "data_prep") if room == "cli" else ())}
    for level, room in enumerate(ROOMS)
}


def modules() -> list[Path]:
    return sorted(
        path for folder in ("medtune_jax", "data_prep", "configs") for path in (REPOSITORY / folder).rglob("*.py")
    )


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def room_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return parts[1] if parts[0] == "medtune_jax" else parts[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Yields every imported dotted name under `tree`, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room that they come from"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=name)
def test_imports_point_downward_only(path: Path):
    room = room_of(path)
    for imported in imports(ast.parse(path.read_text())):
        package, _, rest = imported.partition(".")
        if package != "medtune_jax" or not rest:
            continue
        target = rest.split(".")[0]
        if target in ("__version__", room):
            continue
        assert target in MAY_IMPORT[room], f"{name(path)} imports {imported}, but {room} stands below or beside it"


def test_every_room_of_the_package_has_its_place_in_the_order():
    assert {room_of(path) for path in modules()} - {"__init__"} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", modules(), ids=name)
def test_every_module_says_in_a_docstring_what_it_is_for(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_no_source_file_is_longer_than_400_lines():
    folders = ("medtune_jax", "data_prep", "configs", "scripts")
    lengths = {
        name(path): len(path.read_text().splitlines())
        for folder in folders
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in (".py", ".sh")
    }
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}
