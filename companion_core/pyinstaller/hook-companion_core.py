"""PyInstaller's hook: the core's tables, the programs that run by path, and what plugins import."""

from __future__ import annotations

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

# Another interpreter runs these files; inside the product's archive they would be no files.
PROGRAMS = ["runtime/standalone/*.py"]
# Tools of authors and of this repository, which a product does not run.
LEFT_OUT = ("companion_core.testing", "companion_core.pytest_plugin", "companion_core.pyinstaller")

datas = collect_data_files("companion_core")
datas += collect_data_files("companion_core", include_py_files=True, includes=PROGRAMS)
# A plugin from outside the product may import any other module; `pynvml` is imported by its name.
hiddenimports = collect_submodules(
    "companion_core", filter=lambda name: not name.startswith(LEFT_OUT)
)
hiddenimports += ["pynvml"]
