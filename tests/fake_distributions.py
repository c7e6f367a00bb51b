"""Distributions that only exist as a dist-info folder and a few modules on the search path."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

GROUPS = {"importance": "lit_tidpo.importance", "losses": "lit_tidpo.losses"}

ESTIMATOR = """\
import torch

from lit_tidpo.importance.base import ImportanceEstimator


class {name}(ImportanceEstimator):
    '''A plugin of the tests.

    Args:
        model: Also an argument of the built-in ones.
        own: An argument of its own.
    '''

    def __init__(self, model: str = "mine", own: int = 1) -> None:
        self.model = model
        self.own = own

    def scores(self, results):
        return torch.ones_like(results["policy.logps"])
"""


class FakeSite:
    """A folder of distributions on the search path, for as long as a test runs."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        monkeypatch.syspath_prepend(folder)

    def add(
        self,
        name: str,
        version: str = "1.0",
        modules: Mapping[str, str] | None = None,
        **groups: Mapping[str, str],
    ) -> None:
        """Install a distribution.

        Args:
            name: Its name.
            version: Its version.
            modules: Text of each of its modules.
            groups: ``importance`` and ``losses``: object references by plugin name.
        """
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = []
        for group, entries in groups.items():
            lines.append(f"[{GROUPS[group]}]")
            lines += [f"{plugin} = {value}" for plugin, value in entries.items()]
            for plugin in entries:
                self._forget(vars(importlib.import_module(GROUPS[group])), plugin)
        (info / "entry_points.txt").write_text("\n".join(lines))
        for module, text in (modules or {}).items():
            (self.folder / f"{module}.py").write_text(text)
            self._forget(sys.modules, module)
        # jsonargparse walks all classes there are: one of an earlier test with the same path would
        # hide the new one.
        gc.collect()
        importlib.invalidate_caches()
        # importlib.metadata looks again where a folder's time has moved, which two changes within a
        # tick of the clock do not make it do.
        time = self.folder.stat().st_mtime_ns + 10**7
        os.utime(self.folder, ns=(time, time))

    def _forget(self, names: dict[str, Any], name: str) -> None:
        """Take a name away, now and, whatever a test makes of it, when the test ends."""
        self._monkeypatch.setitem(names, name, None)
        self._monkeypatch.delitem(names, name)

    def imported(self, module: str) -> bool:
        """Whether a module of this folder has been imported."""
        return module in sys.modules
