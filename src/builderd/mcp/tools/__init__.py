"""Tools by subject, and the table of them all."""

from __future__ import annotations

from dataclasses import dataclass

from mcp_types import ToolAnnotations

from builderd.mcp.calls import CHANGE, DESTROY, MAKE, READ, RUN, Tool
from builderd.mcp.tools import account, deployments, files, running


@dataclass(frozen=True, slots=True)
class Entry:
    """A tool with its title and hints, and the operations of the API that it calls, as ``METHOD path``."""

    tool: Tool
    title: str
    hints: ToolAnnotations
    operations: tuple[str, ...]


LIST = "GET /builders"
BUILDER = "/builders/{uuid}"
FILE = f"{BUILDER}/files/{{path}}"
CREDENTIAL = "/credentials/{name}"
#: Operations that find a builder by name or uuid.
FIND = (LIST, f"GET {BUILDER}")
FAILURE = (f"GET {BUILDER}/logs", f"GET {BUILDER}/qa")

TOOLS: tuple[Entry, ...] = (
    Entry(
        deployments.deploy_code,
        "Deploy code",
        CHANGE,  # the same call again makes no second one
        ("POST /builders", *FIND, f"GET {BUILDER}/versions", *FAILURE),
    ),
    Entry(deployments.redeploy, "Redeploy", MAKE, (*FIND, f"PUT {BUILDER}", *FAILURE)),
    Entry(deployments.rollback_deployment, "Roll back", MAKE, (*FIND, f"POST {BUILDER}/rollback", *FAILURE)),
    Entry(deployments.list_deployments, "List deployments", READ, (LIST,)),
    Entry(deployments.get_deployment, "Show a deployment", READ, (*FIND, f"GET {BUILDER}/versions")),
    Entry(running.start_deployment, "Start", CHANGE, (*FIND, f"POST {BUILDER}/start")),
    Entry(running.stop_deployment, "Stop", CHANGE, (*FIND, f"POST {BUILDER}/stop")),
    Entry(running.restart_deployment, "Restart", CHANGE, (*FIND, f"POST {BUILDER}/restart")),
    Entry(running.set_auto_stop, "Set auto-stop", CHANGE, (*FIND, f"PUT {BUILDER}/auto-stop")),
    Entry(running.delete_deployment, "Delete", DESTROY, (*FIND, f"DELETE {BUILDER}")),
    Entry(files.get_deployment_files, "List files", READ, (*FIND, f"GET {BUILDER}/files")),
    Entry(files.read_file, "Read a file", READ, (*FIND, f"GET {FILE}")),
    Entry(files.write_file, "Write a file", DESTROY, (*FIND, f"GET {FILE}", f"PUT {FILE}")),
    Entry(running.review_deployment, "Review again", CHANGE, (*FIND, f"POST {BUILDER}/review")),
    Entry(running.get_review, "Show the review", READ, (*FIND, f"GET {BUILDER}/review")),
    Entry(running.test_deployment, "Test again", CHANGE, (*FIND, f"POST {BUILDER}/qa", f"GET {BUILDER}/qa")),
    Entry(
        running.get_qa_report,
        "Show the QA report",
        READ,
        (*FIND, f"GET {BUILDER}/qa", f"GET {BUILDER}/qa/screenshots/{{name}}"),
    ),
    Entry(running.get_logs, "Read logs", READ, (*FIND, f"GET {BUILDER}/logs")),
    Entry(running.exec_command, "Run a command", RUN, (*FIND, f"POST {BUILDER}/exec")),
    Entry(running.create_ssh, "Open SSH access", MAKE, (*FIND, f"POST {BUILDER}/ssh")),
    Entry(account.create_upload_link, "Create an upload link", MAKE, ("POST /uploads",)),
    Entry(account.store_credentials, "Store credentials", DESTROY, (f"GET {CREDENTIAL}", f"PUT {CREDENTIAL}")),
    Entry(account.list_credentials, "List credentials", READ, ("GET /credentials",)),
    Entry(account.get_spending, "Show spending", READ, ("GET /builders/spending", "GET /spending-cap")),
)
