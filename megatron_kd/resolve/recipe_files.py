"""Recipe scripts on disk: finding them, and reading the configuration out of one without running it."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from megatron_kd.config.container import ConfigContainer
from megatron_kd.errors import InputError
from megatron_kd.messages import first_line

# Exceptions that a bug in a recipe raises. A recipe is the user's code, so the user has to fix it.
MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


# Beside an installation's data, where setup.py puts recipes and the files that go with them.
_SHARE = "share/megatron_kd"


def recipes_folder() -> Path:
    """The folder `recipes` of the working directory, else the one beside this package, else the installation's."""
    places = [Path("recipes"), Path(__file__).resolve().parents[2] / "recipes"]
    installed = Path(sysconfig.get_path("data")) / _SHARE / "recipes"
    return next((place for place in places if place.is_dir()), installed)


def find_recipe(name: str | Path) -> Path:
    """The script that `name` means: a path, or the name of a recipe that `list_recipes` finds, without `.py`.

    Raises:
        InputError: there is none, or several have that name.
    """
    path = Path(name)
    if path.is_file():
        return path
    found = [recipe for recipe, _ in list_recipes(recipes_folder()) if str(name) in (recipe.stem, recipe.name)]
    if len(found) > 1:
        raise InputError(f"{name}: several recipes have this name; write one of {', '.join(map(str, found))}")
    if not found:
        raise InputError(f"{path}: there is no such recipe{_near(path)}")
    return found[0]


def parts_of(recipe: Path) -> list[Path]:
    """The modules beside a recipe that it imports, directly or through each other; nothing is executed."""
    found: list[Path] = []
    waiting = [recipe]
    while waiting:
        tree = ast.parse(waiting.pop().read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            beside = [recipe.with_name(f"{name}.py") for name in names]
            new = [path for path in beside if path.is_file() and path not in found and path != recipe]
            found += new
            waiting += new
    return found


def list_recipes(folder: Path) -> list[tuple[Path, str]]:
    """Every recipe script below `folder`, sorted by path, with the first line of its docstring.

    A script is one that defines `recipe` or a function of its own name; nothing is executed.
    """
    found = []
    for path in sorted(folder.rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            found.append((path, "(is not valid Python)"))
            continue
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if functions & set(_entry_names(path)):
            found.append((path, (ast.get_docstring(tree) or "").partition("\n")[0]))
    return found


def load_recipe(path: str | Path) -> Callable[[], ConfigContainer]:
    """Import a recipe script, named as in `find_recipe`, and return the function that makes its configuration.

    The function is `recipe`, or the one named as the file (dashes as underscores). It raises `InputError` where
    the recipe's own code fails.

    Raises:
        InputError: there is no such file, it cannot be imported, or it defines no such function.
    """
    path = find_recipe(path)
    module = _import(path)
    names = _entry_names(path)
    function = next((getattr(module, name) for name in names if callable(getattr(module, name, None))), None)
    if function is None:
        raise InputError(f"{path}: defines no recipe; add `def {names[0]}() -> ConfigContainer`")
    return lambda: _configuration(path, function)


def _entry_names(path: Path) -> list[str]:
    return list(dict.fromkeys(["recipe", re.sub(r"\W", "_", path.stem)]))


def _near(path: Path) -> str:
    known = [str(recipe) for recipe, _ in list_recipes(recipes_folder())]
    same_name = [name for name in known if Path(name).name == path.name]
    stems = difflib.get_close_matches(path.stem, [Path(name).stem for name in known], n=3, cutoff=0.6)
    near = same_name or difflib.get_close_matches(str(path), known, n=3, cutoff=0.5)
    near = near or [name for name in known if Path(name).stem in stems] or known[:5]
    return f"; did you mean {' or '.join(near)}?" if near else "; `megatron-kd ls` lists those there are"


def _import(path: Path) -> ModuleType:
    name = "_megatron_kd_recipe_" + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: is not a Python file; recipes end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses of the recipe look themselves up there
    sys.path.insert(0, str(path.resolve().parent))  # as when Python runs the script
    try:
        spec.loader.exec_module(module)
    except MISTAKES as error:
        raise InputError(f"{path}: cannot be imported: {_place(path, error)}") from error
    finally:
        sys.path.pop(0)
    return module


def _configuration(path: Path, function: Callable[[], ConfigContainer]) -> ConfigContainer:
    try:
        config = function()
    except InputError:
        raise
    except MISTAKES as error:
        raise InputError(f"{path}: the recipe fails: {_place(path, error)}") from error
    if not isinstance(config, ConfigContainer):
        raise InputError(f"{path}: the recipe must return a ConfigContainer, and returned a {type(config).__name__}")
    return config


def _place(path: Path, error: BaseException) -> str:
    """The error in one line, with the line of the recipe it came from."""
    script = path.resolve()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == script]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    return f"{type(error).__name__}: {first_line(error)}" + (f" (line {line})" if line else "")
