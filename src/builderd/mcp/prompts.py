"""Prompts: tasks that a user starts by name."""

from __future__ import annotations

from typing import Any

from mcp.server.mcpserver import MCPServer


def add_prompts(server: MCPServer[Any]) -> None:
    """Add the prompts to a server."""

    @server.prompt(title="Deploy this folder")
    def deploy_this_folder(name: str, folder: str = ".") -> str:
        """Deploy the code in a folder and show that it works."""
        return (
            f"Deploy the code in {folder} as {name!r} with builderd. Find out how it starts and what it needs; leave "
            "out .git, node_modules, virtual environments and secrets (put those into store_credentials, after asking "
            "me). Make it listen on 0.0.0.0:$PORT. Call deploy_code with all files, or create_upload_link where they "
            "are more than 1 MB. If a stage fails, mend the code and try again. When it is up, look at get_qa_report "
            "with its screenshots, and tell me the URL and what you changed."
        )

    @server.prompt(title="Why does it fail?")
    def why_does_it_fail(deployment: str) -> str:
        """Find out why a deployment fails, without changing it."""
        return (
            f"Find out why the deployment {deployment!r} fails. Read get_deployment, get_logs (with stream=build for "
            "the installer), get_review and get_qa_report; look at files and run commands only to read. Change "
            "nothing. Tell me the cause, the evidence, and the smallest change that would mend it."
        )

    @server.prompt(title="Make it pass its gates")
    def make_it_pass_its_gates(deployment: str) -> str:
        """Mend a deployment until its review and QA pass."""
        return (
            f"Make the deployment {deployment!r} pass its review and QA. Read get_review and get_qa_report, correct "
            "the causes in the code, and redeploy with require_qa=true; repeat until both pass. Do not skip a gate, do "
            "not weaken a check, and do not hide an error. Then call test_deployment, and tell me what was wrong."
        )
