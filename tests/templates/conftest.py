"""The rendered Python models import what lies beside them; here it lies in three folders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.paths import SOURCE_ROOT


@pytest.fixture(autouse=True, scope="module")
def beside_each_other() -> Iterator[None]:
    """The three folders on the path, for the tests of this folder only."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("shared", "preprocessing", "postprocessing"):
            patch.syspath_prepend(SOURCE_ROOT / "templates" / folder)
        yield
