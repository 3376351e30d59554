"""Build the review gate: its scanner, its policy and its optional language model."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from builderd.bootstrap.engines import engine_provider
from builderd.code.model import Bundle
from builderd.core.errors import ValidationFailed
from builderd.linux.clock import SystemClock
from builderd.review import service as reviews
from builderd.review.model import Policy, Report, make_policy
from builderd.review.scanners.language_model import LanguageModelAdviser
from builderd.review.scanners.tripwire.scanner import Toolbox, TripwireScanner, find_tools
from builderd.settings import Settings

#: The policy when the setting ``review.policy`` is not set.
DEFAULT_POLICY = Path(__file__).parent.with_name("review_policy.yaml")


def make_review_gate(settings: Settings) -> reviews.Gate:
    """Build the review gate. Raises ``ValidationFailed`` for an invalid policy file."""
    return reviews.Gate(make_scanner(settings), make_review_policy(settings), make_adviser(settings))


def make_scanner(settings: Settings) -> TripwireScanner:
    """Build the scanner. Node.js is the base's, or the host's before the base is built."""

    def find() -> Toolbox:
        node = shutil.which("node")
        return find_tools(engine_provider(settings).find_base(), Path(node) if node else None)

    return TripwireScanner(find)


def make_adviser(settings: Settings) -> LanguageModelAdviser | None:
    """Return the language model that reviews code too, or None when none is configured."""
    review = settings.review
    if review.model_url is None or review.model is None:
        return None
    key = review.model_key.get_secret_value() if review.model_key else None
    return LanguageModelAdviser(review.model_url, review.model, key, review.model_timeout)


def make_review_policy(settings: Settings) -> Policy:
    """Load the operator's policy, or the default. Raises ``ValidationFailed`` with what is wrong in the file."""
    file = settings.review.policy or DEFAULT_POLICY
    try:
        document = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValidationFailed({"review.policy": [f"{file} cannot be read as YAML: {error}"]}) from None
    return make_policy(document)


async def review_code(settings: Settings, bundle: Bundle, entrypoint: str) -> Report:
    """Review code that is not deployed; for ``builderd review``."""
    gate = make_review_gate(settings)
    try:
        return await gate.review(bundle, entrypoint, SystemClock().now())
    finally:
        await gate.close()
