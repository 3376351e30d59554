"""Apps in JavaScript: frameworks with a build, and servers."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.acceptance.zoo.app import (
    Files,
    Kept,
    Visit,
    ZooApp,
    all_of,
    answers,
    given,
    package_json,
    received,
    runs,
)
from tests.acceptance.zoo.generators import from_npm
from tests.acceptance.zoo.python_apps import GUEST

#: Programs and pages of the apps.
TEXTS: dict[str, str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())

#: Builds take two vCPU; what serves their result is small.
ON_DISK = Kept(runs(f"echo {GUEST!r} > guests.txt"), runs("cat guests.txt", GUEST))
#: For servers of their own: a request leaves a name, the next one reads all.
OVER_HTTP = Kept(answers("guests", "", "POST", content=GUEST), answers("guests", GUEST))
PREVIEW = "npm run preview -- --host 0.0.0.0 --port $PORT"

VITE_REACT = ZooApp(
    "vite-react",
    lambda _: from_npm("create-vite@9.3.0", "made --template react --no-interactive"),
    PREVIEW,
    all_of(answers("", '<div id="root">'), answers("", "/assets/index-")),
    ON_DISK,
    "Get started",
)


def next_files(_: object) -> Files:
    made = from_npm(
        "create-next-app@16.4.3",
        "made --js --app --empty --no-tailwind --no-eslint --no-src-dir --skip-install --disable-git --yes",
    )
    return {**made, "app/guests/route.js": TEXTS["guests_route"]}


NEXT = ZooApp("nextjs", next_files, "npm start", answers("", "Hello World!"), OVER_HTTP, "Hello World!")


def svelte_files(_: object) -> Files:
    made = from_npm("sv@0.17.1", "create made --template minimal --no-types --no-add-ons --no-install")
    route = "src/routes/guests/+server.js"
    return {
        **made,
        route: TEXTS["guests_route"].replace("POST(request)", "POST({ request })"),
    }


SVELTEKIT = ZooApp(
    "sveltekit", svelte_files, PREVIEW, answers("", "Welcome to SvelteKit"), ON_DISK, "Welcome to SvelteKit"
)

#: Its generator takes its templates from elsewhere than npm: the smallest project of its documentation.
ASTRO = ZooApp(
    "astro",
    given(
        {
            "package.json": package_json(
                type="module",
                scripts={"build": "astro build", "preview": "astro preview"},
                dependencies={"astro": "^5.0.0"},
            ),
            "src/pages/index.astro": '---\nconst name = "Astro";\n---\n'
            '<html lang="en"><head><title>{name}</title></head><body><h1>{name} in the zoo</h1></body></html>\n',
        }
    ),
    PREVIEW,
    answers("", "Astro in the zoo"),
    ON_DISK,
    "Astro in the zoo",
)
NUXT = ZooApp(
    "nuxt",
    given(
        {
            "package.json": package_json(
                type="module",
                scripts={"build": "nuxt build"},
                dependencies={"nuxt": "~4.1.3", "vue": "^3.5.0", "vue-router": "^4.5.0"},
            ),
            "nuxt.config.js": "export default defineNuxtConfig({\n"
            '  compatibilityDate: "2025-07-15", telemetry: false });\n',
            "app/app.vue": '<script setup>\nconst { data } = await useFetch("/guests");\n</script>\n'
            "<template>\n  <h1>Nuxt in the zoo</h1>\n  <p>{{ data }}</p>\n</template>\n",
            "server/routes/guests.js": 'import { appendFile, readFile } from "node:fs/promises";\n'
            "export default defineEventHandler(async (event) => {\n"
            '  if (event.method == "POST") await appendFile("guests.txt", await readRawBody(event));\n'
            '  return readFile("guests.txt", "utf8").catch(() => "nobody");\n});\n',
        }
    ),
    "node .output/server/index.mjs",
    answers("", "Nuxt in the zoo"),
    OVER_HTTP,
    GUEST,
)
REACT_ROUTER = ZooApp(
    "react-router",
    given(
        {
            "package.json": package_json(
                type="module",
                scripts={"build": "react-router build", "start": "react-router-serve ./build/server/index.js"},
                dependencies={
                    "@react-router/node": "7.9.6",
                    "@react-router/serve": "7.9.6",
                    "isbot": "^5.0.0",
                    "react": "^19.0.0",
                    "react-dom": "^19.0.0",
                    "react-router": "7.9.6",
                },
                devDependencies={"@react-router/dev": "7.9.6", "vite": "^7.0.0"},
            ),
            "vite.config.js": 'import { reactRouter } from "@react-router/dev/vite";\n'
            "export default { plugins: [reactRouter()] };\n",
            "app/root.jsx": 'import { Outlet, Scripts } from "react-router";\nexport default function Root() {\n'
            '  return <html lang="en"><body><Outlet /><Scripts /></body></html>;\n}\n',
            "app/routes.js": 'import { index } from "@react-router/dev/routes";\nexport default [index("home.jsx")];\n',
            "app/home.jsx": "export default function Home() {\n  return <h1>React Router in the zoo</h1>;\n}\n",
        }
    ),
    "npm start",
    answers("", "React Router in the zoo"),
    ON_DISK,
    "React Router in the zoo",
)

EXPRESS = ZooApp(
    "express",
    given(
        {
            "package.json": package_json(scripts={"start": "node server.js"}, dependencies={"express": "5.3.0"}),
            "server.js": 'const express = require("express"), fs = require("fs");\nconst app = express();\n'
            "app.use(express.text({ type: () => true }));\n"
            'const guests = () => (fs.existsSync("guests.txt") ? fs.readFileSync("guests.txt", "utf8") : "nobody");\n'
            'app.get("/", (_, answer) => answer.send(`<h1>Express in the zoo</h1>${guests()}`));\n'
            'app.get("/guests", (_, answer) => answer.type("text").send(guests()));\n'
            'app.post("/guests", (request, answer) => {\n  fs.appendFileSync("guests.txt", request.body);\n'
            '  answer.send("signed");\n});\napp.listen(process.env.PORT);\n',
        }
    ),
    "npm start",
    answers("", "Express in the zoo"),
    OVER_HTTP,
    GUEST,
)
FASTIFY = ZooApp(
    "fastify",
    given(
        {
            "package.json": package_json(type="module", dependencies={"fastify": "5.12.8"}),
            "server.js": 'import { appendFile, readFile } from "node:fs/promises";\nimport Fastify from "fastify";\n'
            "const app = Fastify({ logger: true });\n"
            'app.addContentTypeParser("*", { parseAs: "string" }, async (_, body) => body);\n'
            'const guests = () => readFile("guests.txt", "utf8").catch(() => "nobody");\n'
            'app.get("/", async (_, reply) =>\n'
            '  reply.type("text/html").send(`<h1>Fastify in the zoo</h1>${await guests()}`));\n'
            'app.get("/guests", async () => guests());\n'
            'app.post("/guests", async (request) => {\n  await appendFile("guests.txt", request.body);\n'
            '  return { signed: true };\n});\nawait app.listen({ host: "0.0.0.0", port: Number(process.env.PORT) });\n',
        }
    ),
    "node server.js",
    answers("", "Fastify in the zoo"),
    Kept(
        answers("guests", "signed", "POST", content=GUEST, headers={"Content-Type": "text/x-guest"}),
        answers("guests", GUEST),
    ),
    GUEST,
)


def emit(visit: Visit) -> None:
    """Speak Engine.IO 4 and Socket.IO 5 as the page's own client does: open, join, emit, be answered."""
    with visit.socket("socket.io/?EIO=4&transport=websocket") as socket:
        for message in received(socket, 30):
            if message.startswith("0"):
                socket.send("40")
            elif message.startswith("40"):
                socket.send(f'42["say","{GUEST}"]')
            elif message.startswith("42"):
                assert GUEST in message
                return
        raise AssertionError("no event came back")


SOCKET_IO = ZooApp(
    "socket-io",
    given(
        {
            "package.json": package_json(dependencies={"socket.io": "4.8.4"}),
            "server.js": 'const fs = require("fs");\n'
            'const server = require("http").createServer((request, answer) => {\n'
            '  if (request.url == "/said") return answer.end(fs.readFileSync("said.txt"));\n'
            '  answer.setHeader("Content-Type", "text/html");\n'
            "  answer.end(`<h1>Socket.IO in the zoo</h1><p id=said></p><script src=/socket.io/socket.io.js></script>\n"
            '    <script>const s = io(); s.on("said", t => document.querySelector("#said").textContent += t);\n'
            '    s.emit("say", "hello from the page")</script>`);\n});\n'
            'const io = new (require("socket.io").Server)(server);\n'
            'io.on("connection", (socket) => socket.on("say", (text) => {\n'
            '  fs.appendFileSync("said.txt", `${text}\\n`);\n'
            '  io.emit("said", text);\n}));\nserver.listen(process.env.PORT, "0.0.0.0");\n',
        }
    ),
    "node server.js",
    emit,
    Kept(emit, answers("said", GUEST)),
    "hello from the page",
)

NODE_APPS = (VITE_REACT, NEXT, SVELTEKIT, ASTRO, NUXT, REACT_ROUTER, EXPRESS, FASTIFY, SOCKET_IO)
