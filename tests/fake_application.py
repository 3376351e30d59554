"""The application, put together from fakes."""

from __future__ import annotations

from tests.fakes.backup_repository import FakeBackupRepository
from tests.fakes.bundles import FakeBundles
from tests.fakes.engine import FakeEngine
from tests.fakes.installer import FakeInstaller
from tests.fakes.previews import FakePreviews
from tests.fakes.scanners import FakeScanner
from tests.fakes.testers import FakeTesters
from tests.fakes.uploads import FakeUploads
from tests.fakes.vault import in_memory
from tests.fakes.webhooks import FakeWebhookSender

from builderd.application import Application
from builderd.bootstrap.review import make_review_policy
from builderd.builders.signals import Signals
from builderd.core.clock import Clock
from builderd.database.unit_of_work import Store
from builderd.executions.model import Gateway
from builderd.money.model import Prices
from builderd.previews.model import PreviewDomain
from builderd.review.service import Gate
from builderd.settings import Settings
from builderd.tokens.limits import Limits

POLICY = make_review_policy(Settings())


def make_application(
    store: Store,
    engine: FakeEngine,
    previews: FakePreviews,
    stored: FakeBundles,
    installer: FakeInstaller,
    testers: FakeTesters,
    scanner: FakeScanner,
    clock: Clock,
    limits: Limits,
) -> Application:
    """Return the application on these fakes."""
    return Application(
        store=store,
        engine=engine,
        previews=previews,
        bundles=stored,
        installer=installer,
        uploads=FakeUploads(),
        testers=testers,
        review=Gate(scanner, POLICY),
        signals=Signals(),
        clock=clock,
        vault=in_memory(),
        webhooks=FakeWebhookSender(),
        limits=limits,
        prices=Prices(shown=True),
        preview_domain=PreviewDomain("http", "localhost", 8080),
        instance="first",
        ssh=Gateway("localhost", 8022, "ssh-ed25519 AAAA", "SHA256:fake"),
        backup_repository=FakeBackupRepository(engine),
        usage={},
        scratch=set(),
    )
