"""Frameworks that look for their packages in the project's folder and make their pages by a build."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from tests.acceptance.live_service import LiveService

pytestmark = [pytest.mark.root, pytest.mark.slow]

VITE = {
    "package.json": json.dumps(
        {
            "type": "module",
            "scripts": {"build": "vite build", "preview": "vite preview"},
            "devDependencies": {"vite": "^7.0.0"},
        }
    ),
    "index.html": '<!doctype html><div id="app"></div><script type="module" src="/main.js"></script>',
    "main.js": 'document.querySelector("#app").textContent = "made by vite";\n',
    "vite.config.js": "export default { build: { minify: false } };\n",
}
NEXT = {
    "package.json": json.dumps(
        {
            "scripts": {"build": "next build", "start": "next start -H 0.0.0.0"},
            "dependencies": {"next": "^16.0.0", "react": "^19.0.0", "react-dom": "^19.0.0"},
        }
    ),
    "app/layout.js": "export default function Layout({ children }) {\n"
    '  return <html lang="en"><body>{children}</body></html>;\n}\n',
    "app/page.js": "export default function Page() {\n  return <h1>made by next</h1>;\n}\n",
    "app/api/time/route.js": 'export const dynamic = "force-dynamic";\n'
    "export function GET() {\n  return Response.json({ now: Date.now() });\n}\n",
}
SVELTE = {
    "package.json": json.dumps(
        {
            "type": "module",
            "scripts": {"build": "vite build"},
            "devDependencies": {
                "@sveltejs/adapter-node": "^5.0.0",
                "@sveltejs/kit": "^2.0.0",
                "@sveltejs/vite-plugin-svelte": "^6.0.0",
                "svelte": "^5.0.0",
                "vite": "^7.0.0",
            },
        }
    ),
    "svelte.config.js": 'import node from "@sveltejs/adapter-node";\nexport default { kit: { adapter: node() } };\n',
    "vite.config.js": 'import { sveltekit } from "@sveltejs/kit/vite";\nexport default { plugins: [sveltekit()] };\n',
    "src/app.html": "<!doctype html><html><head>%sveltekit.head%</head><body>%sveltekit.body%</body></html>\n",
    "src/routes/+page.svelte": "<h1>made by svelte</h1>\n",
}
ASTRO = {
    "package.json": json.dumps(
        {"type": "module", "scripts": {"build": "astro build"}, "dependencies": {"astro": "^5.0.0"}}
    ),
    "src/pages/index.astro": '---\nconst name = "astro";\n---\n'
    '<html lang="en"><body><h1>made by {name}</h1></body></html>\n',
}
NUXT = {
    "package.json": json.dumps(
        {
            "type": "module",
            "scripts": {"build": "nuxt build"},
            "dependencies": {"nuxt": "~4.1.3", "vue": "^3.5.0", "vue-router": "^4.5.0"},
        }
    ),
    "nuxt.config.js": 'export default defineNuxtConfig({ compatibilityDate: "2025-07-15", telemetry: false });\n',
    "app/app.vue": "<template>\n  <h1>made by nuxt</h1>\n</template>\n",
}
REACT_ROUTER = {
    "package.json": json.dumps(
        {
            "type": "module",
            "scripts": {"build": "react-router build", "start": "react-router-serve ./build/server/index.js"},
            "dependencies": {
                "@react-router/node": "7.9.6",
                "@react-router/serve": "7.9.6",
                "isbot": "^5.0.0",
                "react": "^19.0.0",
                "react-dom": "^19.0.0",
                "react-router": "7.9.6",
            },
            "devDependencies": {"@react-router/dev": "7.9.6", "vite": "^7.0.0"},
        }
    ),
    "vite.config.js": 'import { reactRouter } from "@react-router/dev/vite";\n'
    "export default { plugins: [reactRouter()] };\n",
    "app/root.jsx": 'import { Outlet, Scripts } from "react-router";\nexport default function Root() {\n'
    '  return <html lang="en"><body><Outlet /><Scripts /></body></html>;\n}\n',
    "app/routes.js": 'import { index } from "@react-router/dev/routes";\nexport default [index("home.jsx")];\n',
    "app/home.jsx": "export default function Home() {\n  return <h1>made by react router</h1>;\n}\n",
}


def stages(service: LiveService, uuid: str) -> dict[str, float]:
    events = service.call("GET", f"/builders/{uuid}/events?type=stage.finished").json()["data"]
    return {one["details"]["stage"]: one["details"]["seconds"] for one in events}


def settled(service: LiveService, uuid: str) -> dict[str, Any]:
    for _ in range(600):
        data: dict[str, Any] = service.call("GET", f"/builders/{uuid}").json()["data"]
        if data["status"] != "creating":
            return data
        time.sleep(1)
    raise TimeoutError(uuid)


@pytest.mark.parametrize(
    ("name", "files", "entrypoint", "path", "text"),
    [
        ("vite", VITE, "npm run preview -- --host 0.0.0.0 --port $PORT", "", "assets/index-"),
        ("next", NEXT, "npm start", "", "made by next"),
        ("svelte", SVELTE, "node build", "", "made by svelte"),
        ("astro", ASTRO, "npx astro preview --host 0.0.0.0 --port $PORT", "", "made by astro"),
        ("nuxt", NUXT, "node .output/server/index.mjs", "", "made by nuxt"),
        ("react-router", REACT_ROUTER, "npm start", "", "made by react router"),
    ],
)
def test_project_is_built_and_served(
    service: LiveService, name: str, files: dict[str, str], entrypoint: str, path: str, text: str
) -> None:
    body = {"name": name, "files": files, "entrypoint": entrypoint, "resources": {"cpu": 2, "memory": 2, "disk": 3}}
    # Installing and building take minutes on a loaded machine.
    accepted = service.call("POST", "/builders", json=body, headers={"Prefer": "respond-async"})
    assert accepted.status_code == 202, accepted.text
    data = accepted.json()["data"]
    try:
        data = settled(service, data["uuid"])
        assert data["status"] == "running", data["status_reason"]
        assert text in service.visit(data, path).text
        cold = stages(service, data["uuid"])
        assert service.call("POST", f"/builders/{data['uuid']}/restart").status_code == 200
        assert text in service.visit(data, path).text
        assert stages(service, data["uuid"])["build"] == cold["build"]
    finally:
        service.call("DELETE", f"/builders/{data['uuid']}")
