"""Every test uses a Hub on 127.0.0.1, never the real one."""

import atexit
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hub_server import OWNER, HubServer, only_server
from hypothesis import settings

_HUB = only_server()  # each process of pytest-xdist has a Hub of its own
if os.environ.get("HF_ENDPOINT") != _HUB.url:
    # the clients read these when they are imported
    assert "huggingface_hub" not in sys.modules
    _HOME = tempfile.mkdtemp(prefix="sepo-tests-")
    atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
    for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        del os.environ[_name]
    os.environ |= {
        "HF_ENDPOINT": _HUB.url,
        "HF_HOME": _HOME,
        "HF_TOKEN": OWNER,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",  # as the commands set it
    }

_NUMBERS = itertools.count()


# a busy machine fails no test, and a failing example is the next run's too
settings.register_profile("sepo", deadline=None, derandomize=True, database=None)
settings.load_profile("sepo")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """The Hub, with no faults left over from other tests."""
    _HUB.clear()
    yield _HUB
    assert not _HUB.crashes
    _HUB.clear()


@pytest.fixture
def repo_id(hub: HubServer) -> str:
    """The name of a dataset that does not exist yet, in a namespace where the token may write."""
    return f"me/prefs-{next(_NUMBERS)}"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by playwright; `make browser` installs both."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs chromium: make browser")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
