"""The latest usage sample of each builder that runs, in the memory of this process."""

from __future__ import annotations

from collections.abc import Sequence

from builderd.domain.ids import BuilderId
from builderd.domain.metrics import UsageSample


class LatestUsage:
    def __init__(self) -> None:
        self._samples: dict[BuilderId, UsageSample] = {}

    def replace(self, samples: Sequence[UsageSample]) -> None:
        """Replace all samples by these."""
        self._samples = {one.watched.builder_id: one for one in samples}

    def of_builder(self, builder_id: BuilderId) -> UsageSample | None:
        """Return the builder's sample, None when it does not run or was not sampled yet."""
        return self._samples.get(builder_id)

    def all(self) -> Sequence[UsageSample]:
        """Return the samples of all builders."""
        return list(self._samples.values())
