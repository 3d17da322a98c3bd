"""Import paths that the documentation once gave: they still work, and say what they are called now."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType
from typing import Any

NOW = {
    "leanthink.budget_hints": "leanthink.policies.budget_hints",
    "leanthink.cli": "leanthink.entrypoints.cli",  # also where console scripts of older installations look
    "leanthink.tiny": "leanthink.models.tiny",
    "leanthink.tiny.tasks": "leanthink.data.tasks.registry",
    "leanthink.models.tiny.tasks": "leanthink.data.tasks.registry",  # where `from leanthink.tiny import tasks` looks
    "leanthink.tiny.train": "leanthink.models.tiny.train",
}


class OldModules:
    """Finds a module by its old name, before Python looks into the folder of its package."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of the names in NOW, a spec that leads to the same module under its new name."""
        loader: Any = _Moved(fullname)  # base classes of importlib.abc would make `import leanthink` slower
        return ModuleSpec(fullname, loader) if fullname in NOW else None


class _Moved:
    """Loads one module under its old name: it is the very module of the new name, imported once."""

    def __init__(self, old: str) -> None:
        self._old = old

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        _tell(self._old)
        module = import_module(NOW[self._old])
        self._own = module.__spec__  # the import system puts `spec` in its place
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own

    def get_code(self, fullname: str) -> CodeType | None:
        """What `python -m` runs."""
        _tell(self._old)
        loader: Any = getattr(find_spec(NOW[self._old]), "loader", None)
        code: CodeType | None = loader.get_code(NOW[self._old])
        return code


def _tell(old: str) -> None:
    from leanthink.utils.errors import LeanThinkWarning

    warnings.warn(f"{old} is called {NOW[old]} now: use that name", LeanThinkWarning, stacklevel=3)


def install() -> None:
    """Let the old names be found, once."""
    if not any(isinstance(finder, OldModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, OldModules())
