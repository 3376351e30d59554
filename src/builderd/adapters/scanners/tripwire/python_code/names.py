"""Names of functions that the analysis knows: sources of untrusted data, sinks, and functions that pass it on."""

from __future__ import annotations

DECODED, FETCHED, RECEIVED, REQUEST, ENVIRON = "decoded", "fetched", "received", "request", "environ"
ALL = frozenset({DECODED, FETCHED, RECEIVED, REQUEST})
NONE: frozenset[str] = frozenset()

DECODERS = frozenset(
    {
        *(f"base64.{n}" for n in ("b64decode", "b32decode", "b16decode", "b85decode", "a85decode", "decodebytes")),
        *("base64.urlsafe_b64decode", "base64.standard_b64decode", "base64.decodestring"),
        *("zlib.decompress", "gzip.decompress", "bz2.decompress", "lzma.decompress", "marshal.loads"),
        *("binascii.unhexlify", "binascii.a2b_hex", "binascii.a2b_base64", "codecs.decode"),
        *("bytes.fromhex", "bytearray.fromhex"),
    }
)
_VERBS = ("get", "post", "put", "patch", "request", "delete")
FETCHERS = frozenset(
    {f"{library}.{verb}" for library in ("requests", "httpx", "niquests") for verb in _VERBS}
    | {"urllib.request.urlopen", "urllib2.urlopen", "urllib.urlopen", "urllib3.request"}
)
SENDERS = FETCHERS | {"urllib.request.Request", "urllib2.Request"}
SEND_METHODS = frozenset({"post", "put", "patch", "send", "sendall", "sendto", "request", "urlopen", "sendmail"})
EVALUATORS = frozenset({"exec", "eval", "execfile", "types.FunctionType", "code.interact"})
SHELLS = frozenset(
    {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput"}
)
PROCESSES = frozenset(
    {f"subprocess.{name}" for name in ("run", "call", "check_call", "check_output", "Popen")}
    | {
        f"os.{name}"
        for name in ("execl", "execle", "execlp", "execv", "execve", "execvp", "execvpe", "spawnl", "spawnv")
    }
    | {"pty.spawn", "asyncio.create_subprocess_shell", "asyncio.create_subprocess_exec"}
)
TEMPLATES = frozenset(
    {"flask.render_template_string", "jinja2.Template", "render_template_string", "mako.template.Template"}
)
CLEANERS = frozenset({"int", "float", "len", "bool", "isinstance", "hash", "id", "type", "shlex.quote", "sum", "ord"})
#: What hands an environment on whole.
CARRIERS = frozenset(
    {
        *("dict", "str", "repr", "bytes", "list", "tuple", "json.dumps", "urllib.parse.urlencode", "sorted"),
        *("urllib.parse.quote", "urllib.parse.quote_plus", "base64.b64encode", "binascii.hexlify", "zlib.compress"),
    }
)
CARRYING_METHODS = frozenset(
    {"copy", "items", "values", "encode", "decode", "format", "join", "dumps", "b64encode", "hexlify", "hex"}
)
REQUEST_PARTS = frozenset(
    {
        *("args", "form", "values", "json", "data", "headers", "cookies", "files", "get_json", "query", "params"),
        *("forms", "body", "GET", "POST", "query_params", "query_string", "path_params", "stream", "rel_url"),
    }
)
HANDLERS = frozenset(
    {
        *("get", "post", "put", "delete", "patch", "route", "websocket", "api_route", "head", "options"),
        *("message_handler", "on_message"),
    }
)
#: Functions that a chat's client calls with each message.
CHAT_HANDLERS = frozenset({"on_message", "on_message_edit"})
INPUTS = frozenset({f"streamlit.{name}" for name in ("text_input", "text_area", "chat_input")})
INTERPRETERS = ("sh", "bash", "python", "python3", "node", "perl", "ruby", "powershell", "cmd", "zsh", "dash")

Kinds = frozenset[str]
