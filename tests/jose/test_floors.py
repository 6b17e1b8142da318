"""The oldest versions without a known advisory, asserted: an advisory feed may be empty, this list is not."""

from importlib.metadata import PackageNotFoundError, version

import pytest
from packaging.version import Version

FLOORS = {
    "pyjwt": "2.15.0",
    "authlib": "1.9.0",
    "joserfc": "1.7.4",
    "starlette": "1.3.1",
    "python-multipart": "0.0.26",
    "pydantic-settings": "2.14.2",
    "cryptography": "46.0",
}


@pytest.mark.parametrize(("name", "floor"), FLOORS.items())
def test_installed_version(name: str, floor: str) -> None:
    try:
        installed = version(name)
    except PackageNotFoundError:
        return  # what is not installed has no hole
    assert Version(installed) >= Version(floor)
