"""Events as sentences: what happened, from an event's type, reason and details."""

from __future__ import annotations

from builderd.domain.events import Event
from builderd.web.shown import duration, sentence

STAGES = {
    "review": "Review",
    "install": "Install",
    "build": "Build",
    "release": "Release",
    "start": "Start",
    "qa": "QA",
}
#: Texts for types whose events have no reason of their own, or one that says less.
TEXTS = {
    "sandbox.started": "Its sandbox was started",
    "sandbox.frozen": "Frozen: nobody used it",
    "sandbox.thawed": "Woken",
    "webhook.created": "A webhook was made",
}


def telling(event: Event) -> str:
    """Return what happened, without a full stop."""
    details = event.details
    if event.type in ("stage.started", "stage.finished") and "stage" in details:
        name = STAGES.get(str(details["stage"]), str(details["stage"]))
        if event.type == "stage.started":
            return f"{name} began"
        seconds = details.get("seconds")
        took = f" in {duration(float(seconds))}" if isinstance(seconds, int | float) else ""
        return f"{name} {'passed' if details.get('ok') else 'failed'}{took}"
    if event.type == "builder.status" and "to" in details:
        return f"Is {details['to']} now: {event.reason}" if event.reason else f"Is {details['to']} now"
    text = event.reason.split("\n")[0] or TEXTS.get(event.type) or event.type.replace(".", " ").replace("_", " ")
    return sentence(text).removesuffix(".")
