"""Imports modules from exactly the bytes that were hashed, and no others of their packages.

The host uses it in its own process. An embedded runtime's interpreter runs it as a program of its
own, which imports the standard library alone:

    python -I pinned_imports.py DIGEST LIST ROOT MODULE ARGUMENT…

LIST is a file in the form of `rules.code_listing`, DIGEST its SHA-256, which is the digest of the
plugin's code that is trusted. MODULE then runs as `python -m` would run it. Byte code of what is
installed is neither read nor written: a cache may hold other code than the source beside it, which
was proved. The interpreter's own library is proved by neither, and its caches are read.
"""

# These modules are part of the interpreter itself, and quick to import.
import importlib.machinery
import importlib.util
import runpy
import sys

try:
    from _sha2 import sha256 as _sha256  # type: ignore[import-not-found]  # since Python 3.12
except ImportError:
    from _sha256 import sha256 as _sha256  # type: ignore[import-not-found]  # before it

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.abc import PathEntryFinder
    from types import CodeType, ModuleType

__all__ = ["PinnedFinder", "module_name"]

_EXTENSIONS = tuple(importlib.machinery.EXTENSION_SUFFIXES)
_SHA256_DIGITS = 64
_SEPARATOR = "\\" if sys.platform == "win32" else "/"
# Below the interpreter's own library, these hold what was installed.
_INSTALLED = frozenset({"site-packages", "dist-packages"})


def module_name(path: str) -> str | None:
    """Return the dotted name of the module in the file at `path`; None if it is none.

    Args:
        path: relative to the folder that is on the import path, with "/".
    """
    *folders, name = path.split("/")
    stem, _, suffix = name.partition(".")  # an extension module's goes on with the platform
    if name[len(stem) :].rpartition(".")[2] not in {"py", "so", "pyd"} or not suffix:
        return None
    parts = folders if stem == "__init__" else [*folders, stem]
    return ".".join(parts) if parts and all(part.isidentifier() for part in parts) else None


def _require_pinned(data: bytes, sha256: str, name: str) -> None:
    if _sha256(data).hexdigest() != sha256:
        raise ImportError("the file is not the one that was trusted", name=name)


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles the source of one module, after comparing it with its digest."""

    def __init__(self, fullname: str, path: str, sha256: str) -> None:
        super().__init__(fullname, path)
        self._sha256 = sha256

    def get_code(self, fullname: str) -> "CodeType | None":
        path = self.get_filename(fullname)
        source = self.get_data(path)
        _require_pinned(source, self._sha256, fullname)
        return self.source_to_code(source, path)


class _ExtensionLoader(importlib.machinery.ExtensionFileLoader):
    """Has the system load one extension module, after comparing it with its digest."""

    def __init__(self, fullname: str, path: str, sha256: str) -> None:
        super().__init__(fullname, path)
        self._sha256 = sha256

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> "ModuleType":
        _require_pinned(self.get_data(self.path), self._sha256, spec.name)
        return super().create_module(spec)


class PinnedFinder:
    """Finds the modules of trusted plugins in their hashed files only."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[str, str]] = {}
        self._tops: set[str] = set()
        self._namespaces: set[str] = set()

    def pin(self, root: str, files: "Mapping[str, str]") -> None:
        """From now on import the modules among `files` from these alone.

        Args:
            root: the folder that the paths are relative to.
            files: path to SHA-256 in hex.
        """
        for path in sorted(files, key=lambda path: path.endswith(_EXTENSIONS)):
            name = module_name(path)
            if name is None or not path.endswith((".py", *_EXTENSIONS)):
                continue
            # Extension modules come last: Python prefers them to a source of the same name.
            self._files[name] = (f"{root}/{path}", files[path])
            parts = name.split(".")
            self._tops.add(parts[0])
            self._namespaces.update(".".join(parts[:n]) for n in range(1, len(parts)))

    def find_spec(
        self,
        fullname: str,
        path: "Sequence[str] | None",  # noqa: ARG002 - the finder's protocol
        target: "ModuleType | None" = None,  # noqa: ARG002 - the finder's protocol
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where a pinned module is; refuse any other module of its package."""
        found = self._files.get(fullname)
        if found is None:
            foreign = fullname.partition(".")[0] in self._tops and fullname not in self._namespaces
            if foreign:
                raise ModuleNotFoundError(f"No trusted module named {fullname!r}", name=fullname)
            return None
        file, sha256 = found
        kind = _SourceLoader if file.endswith(".py") else _ExtensionLoader
        return importlib.util.spec_from_file_location(
            fullname, file, loader=kind(fullname, file, sha256)
        )


class _UncachedLoader(importlib.machinery.SourceFileLoader):
    """Compiles a module's source, whatever lies in the cache beside it."""

    def get_code(self, fullname: str) -> "CodeType | None":
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


_read_folder = importlib.machinery.FileFinder.path_hook(
    (importlib.machinery.ExtensionFileLoader, list(_EXTENSIONS)),
    (_UncachedLoader, importlib.machinery.SOURCE_SUFFIXES),
)


def _uncached(folder: str) -> "PathEntryFinder":
    """Return a finder for a folder of what is installed.

    Raises:
        ImportError: it is the interpreter's own, or no folder: the usual finders take it.
    """
    own = _own_library()
    if own and (folder == own or folder.startswith(own + _SEPARATOR)):
        inside = folder[len(own) :].split(_SEPARATOR)
        if not _INSTALLED.intersection(inside):
            raise ImportError
    return _read_folder(folder)


def _own_library() -> str:
    """Return the folder of the interpreter's own library; empty if it has none, as a frozen one."""
    return str(getattr(sys, "_stdlib_dir", None) or "")


def _read_list(text: str) -> dict[str, str]:
    """Return path to SHA-256; a path may hold anything but NUL, a new line too."""
    first, *rows = text.split("\0")
    paths = [first, *(row[_SHA256_DIGITS + 1 :] for row in rows)]
    return {path: row[:_SHA256_DIGITS] for path, row in zip(paths, rows, strict=False)}


def main() -> None:
    """Run a module whose package is imported from the files of a list alone."""
    digest, listing, root, module, *arguments = sys.argv[1:]
    with open(listing, "rb") as file:  # noqa: PTH123 - nothing more than needed is imported
        listed = file.read()
    _require_pinned(listed, digest, module)
    finder = PinnedFinder()
    finder.pin(root, _read_list(listed.decode()))
    sys.path_hooks.insert(0, _uncached)
    sys.path_importer_cache.clear()
    sys.meta_path.insert(0, finder)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
