"""The versions that a benchmark's figures belong to."""

import importlib.metadata


def versions(*packages: str) -> dict[str, str | None]:
    """Returns the installed version of each package, or None."""
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
