"""Tables of the flow analysis: files with secrets, functions that read, fetch, send and run. Pure data."""

from __future__ import annotations

import re


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Kinds of data.
SECRET, SECRET_PATH, HOME_PATH, LISTED_PATH = "secret", "secret path", "home path", "listed path"
ENVIRONMENT, FETCHED, RECEIVED, DECODED, DOCUMENT = "environment", "fetched", "received", "decoded", "document"
INPUT, CLIPBOARD, USER, HOST, ENCRYPTED = "input", "clipboard", "user", "host", "encrypted"
REQUEST = "request"
#: A private key or a wallet's recovery phrase, by the name of its variable.
KEY = "key"
KEY_NAMES = _names("""
    mnemonic mnemonicPhrase privateKey private_key recoveryPhrase recovery_phrase seedPhrase seed_phrase
""")
#: Names of private keys, too, in a file with a name that ``WALLET_NAMES`` finds; elsewhere, of credentials of an API.
SECRET_KEY_NAMES = _names("secretKey secret_key")
WALLET_NAMES = re.compile(r"(?i:key_?pair|key_?store|mnemonic|(?:seed|recovery)_?phrase|bs58|solana)|private(?:_k|K)ey")
#: Calls that hand a key on as it is; what any other makes of it, such as a signature, is no key.
KEY_CARRIERS = _names("""
    Array.from Buffer.from FormData JSON.stringify String URLSearchParams Uint8Array.from base58.b58encode
    base64.b64encode binascii.hexlify bs58.default.encode bs58.encode btoa bytes dict encodeURIComponent json.dumps
    list repr str
""")
KEY_METHODS = _names("concat decode encode format hex items join toJSON toString trim values")
#: Fields of an object, in small letters, with the key of a connection, which is not sent, or the caller's own
#: credential. Of other headers, two of the incidents' shapes send keys.
KEY_FIELDS = _names("""
    api-key api_key apikey auth authorization ca cert key passphrase pfx proxy-authorization x-access-token x-api-key
    x-auth-token
""")
#: Kinds that sound apps handle too.
WEAK = frozenset({DECODED, DOCUMENT, USER, HOST, LISTED_PATH, HOME_PATH, ENCRYPTED, KEY, "content"})
#: Kinds that say where a file lies; reading it makes data of them.
PATHS = frozenset({SECRET_PATH, HOME_PATH, LISTED_PATH})

#: Files in which people keep secrets: keys, tokens, profiles of browsers and chats, wallets, shell histories.
SECRET_FILES = re.compile(
    r"""(?ix)
    (?:^|[/\\~\0]) (?:\.ssh(?:$|[/\\](?!authorized_keys|known_hosts|config$))|\.aws(?:$|[/\\])|\.gnupg|\.kube(?:$|[/\\])
      |\.docker[/\\]config\.json|\.config[/\\](?:gcloud|gh[/\\]hosts|hub|solana|op)|\.azure(?:$|[/\\])
      |\.netrc|\.npmrc|\.pypirc|\.git-credentials|\.pgpass|\.my\.cnf|\.vault-token|\.terraform\.d|\.cargo[/\\]credentials
      |\.\w*sh_history|\.bash_history|\.python_history|\.mysql_history
      |\.(?:bitcoin|ethereum|electrum|monero|litecoin|zcash|exodus)|\.mozilla|\.thunderbird|\.claude|\.gemini)
    | (?:^|[/\\\0]) id_(?:rsa|ed25519|ecdsa|dsa)$ | \bwallet\.dat\b | \bkey4\.db\b | \blogins\.json\b
    | \bcookies\.sqlite\b
    | \bLogin\ Data\b | \bWeb\ Data$ | \bLocal\ State\b | \bLocal\ Extension\ Settings\b | [/\\]Network[/\\]Cookies$
    | \bUser\ Data\b | \bLocal\ Storage[/\\]leveldb\b | \bdiscord(?:canary|ptb)?[/\\] (?:Local\ Storage|leveldb)
    | \b(?:Google[/\\]Chrome|google-chrome|BraveSoftware|chromium|Microsoft[/\\]Edge|Opera\ Software|YandexBrowser)\b
    | \btdata$ | [/\\](?:Exodus|Electrum|atomic|Coinomi|Ledger\ Live|Guarda)(?:$|[/\\])
    | \bnkbihfbeogaeaoehlefnkodbefgpgknn\b | \bbfnaelmomeimhlpmgjnjophhpkkoljpa\b
    | \bFileZilla[/\\](?:sitemanager|recentservers)
    | ^/etc/(?:shadow|passwd|gshadow|sudoers|ssh/ssh_host) | ^/proc/(?:self|\d+|\0)/(?:environ|mem$)
    | ^/var/run/secrets/kubernetes | ^/run/secrets(?:$|/) | \bLibrary[/\\]Keychains\b | \bKeychains[/\\]login
    """
)
#: Files that start something with a shell, a login or the machine.
START_FILES = re.compile(
    r"""(?ix)
    (?:^|[/\\~\0]) \. (?:bashrc|zshrc|profile|bash_profile|zprofile|bash_login|xprofile|zshenv)$
    | \.ssh[/\\]authorized_keys$ | ^/etc/(?:crontab|cron\.\w+|rc\.local|ld\.so\.preload|systemd/system|init\.d|profile)
    | ^/var/spool/cron | \.config[/\\](?:autostart|systemd[/\\]user)[/\\] | \bLaunch(?:Agents|Daemons)[/\\]
    | \bStart\ Menu[/\\]Programs[/\\]Startup\b | \b(?:site|user)customize\.py$ | \.git[/\\]hooks[/\\]
    | -packages[/\\][^/\\]+\.pth$ | \bdiscord_desktop_core[/\\]index\.js$ | \bUser\ Pinned[/\\]TaskBar\b
    | ^(?=.*\b(?:AppData|Applications|Programs)[/\\]).*[/\\]resources[/\\]app\.asar$
    """
)
#: Roots from which a walk reaches everything that a person owns.
WIDE = re.compile(
    r"(?i)^(?:~|/|~?/?home|/root|/Users|~?/(?:Documents|Desktop|Downloads|Pictures)|/home/\0|[A-Z]:[\\/]*)/?$"
)
#: Names of environment variables that lead to a home.
HOMES = frozenset({"HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "HOMEPATH"})
#: Files that contain no code by their name.
DOCUMENTS = re.compile(
    r"(?i)\.(?:md|txt|png|jpe?g|gif|ico|bmp|webp|json|csv|dat|bin|log|wav|mp3|woff2?|ttf|svg|pdf|css|html?|rst)$"
)
WALLET = re.compile(r"0x\[[^\]]{0,80}\]\{40\}|\[13\]|bc1|\bT\[[^\]]{0,80}\]\{33\}|\[LM3?\]")
#: An address of a wallet, written out.
ADDRESS = re.compile(
    r"^(?:0x[0-9a-fA-F]{40}|bc1[a-z0-9]{25,60}|[13][1-9A-HJ-NP-Za-km-z]{25,34}|T[1-9A-HJ-NP-Za-km-z]{33})$"
)

_HTTP = r"(?:requests|httpx|niquests|aiohttp|urllib3|cloudscraper|requests_html|treq|curl_cffi\.requests)"
_HTTP_JS = r"(?:axios|got|needle|superagent|node-fetch|undici|request|request-promise|ky|phin|bent)"
_VERBS = r"(?:get|post|put|patch|delete|request|stream|fetch|urlopen|head)"
#: Functions whose result comes from the network.
FETCHERS = re.compile(
    rf"^(?:{_HTTP}(?:\.\w+\(\))*\.{_VERBS}|{_HTTP}\.(?:\w+\.)*\w+\(\)\.{_VERBS}|urllib\d?\.(?:request\.)?(?:urlopen|urlretrieve)"
    rf"|http\.client\.HTTPS?Connection\(\)\.getresponse|{_HTTP_JS}(?:\.{_VERBS})?|fetch|https?\.(?:get|request)|wget\.download)$"
)
#: Functions and methods that send what they are given.
SENDERS = re.compile(
    rf"^(?:{_HTTP}(?:\.\w+\(\))*\.{_VERBS}|{_HTTP}\.(?:\w+\.)*\w+\(\)\.{_VERBS}|urllib\d?\.(?:request\.)?(?:urlopen|Request)"
    rf"|{_HTTP_JS}(?:\.{_VERBS})?|fetch|https?\.(?:get|request)|navigator\.sendBeacon|webbrowser\.open"
    r"|http\.client\.HTTPS?Connection\(\)\.request)$"
)
SEND_METHODS = _names("""
    add_file create_file create_gist create_issue execute_webhook post putObject put_object send sendDocument
    sendMail sendMessage send_document send_file send_message sendall sendmail sendto storbinary storlines
    upload_file upload_fileobj
""")
#: Methods that send on what these functions return.
STREAMS = re.compile(
    r"(?:^|\.)(?:https?\.request|net\.(?:connect|createConnection|Socket)|tls\.connect|WebSocket|FTP|ws)\(\)\.(?:write|end|send|put)$"
)
RESOLVERS = re.compile(
    r"^(?:socket\.(?:gethostbyname(?:_ex)?|getaddrinfo)|dns\.(?:resolver\.(?:query|resolve)|promises\.\w+|lookup|resolve\w*|query)"
    r"|dns\.resolver\.Resolver\(\)\.(?:query|resolve)|(?:asyncio\.get_event_loop|asyncio\.get_running_loop)\(\)\.getaddrinfo)$"
)
EVALUATORS = _names("""
    Function code.InteractiveInterpreter().runcode code.InteractiveInterpreter().runsource code.interact
    ctypes.CDLL ctypes.WinDLL ctypes.cdll.LoadLibrary eval exec execfile importlib.util.spec_from_file_location
    process.dlopen runpy.run_path setInterval setTimeout types.FunctionType vm.Script vm.compileFunction
    vm.runInContext vm.runInNewContext vm.runInThisContext
""")
#: Those that are code only as a text: a function in its place is not.
ONLY_TEXT = frozenset({"setTimeout", "setInterval"})
DESERIALIZERS = _names("""
    _pickle.Unpickler _pickle.load _pickle.loads cPickle.Unpickler cPickle.load cPickle.loads
    cloudpickle.Unpickler cloudpickle.load cloudpickle.loads dill.Unpickler dill.load dill.loads
    joblib.Unpickler joblib.load joblib.loads jsonpickle.decode marshal.Unpickler marshal.load marshal.loads
    node-serialize.unserialize pandas.read_pickle pickle.Unpickler pickle.load pickle.loads shelve.open
    torch.load yaml.full_load yaml.unsafe_load
""")
PROCESSES = _names("""
    asyncio.create_subprocess_exec asyncio.create_subprocess_shell child_process.exec child_process.execFile
    child_process.execFileSync child_process.execSync child_process.fork child_process.spawn
    child_process.spawnSync commands.getoutput execa os.execl os.execle os.execlp os.execv os.execve os.execvp
    os.execvpe os.popen os.posix_spawn os.spawnl os.spawnv os.startfile os.system pty.spawn shelljs.exec
    subprocess.Popen subprocess.call subprocess.check_call subprocess.check_output subprocess.getoutput
    subprocess.getstatusoutput subprocess.run
""")
#: Those that take a command for a shell.
SHELLS = _names("""
    asyncio.create_subprocess_shell commands.getoutput os.popen os.system subprocess.getoutput
    subprocess.getstatusoutput
""")
TEMPLATES = _names("flask.render_template_string jinja2.Template mako.template.Template render_template_string")
#: Names of a web framework's request, and its parts that come from the visitor.
REQUESTS = frozenset({"request", "req", "flask_request"})
REQUEST_PARTS = _names("""
    GET POST args body cookies data files form forms get_json headers json params path_params query query_params
    query_string rel_url stream values
""")
#: Decorators of functions whose parameters are of a request or a message.
HANDLERS = _names("api_route delete get head message_handler on_message options patch post put route websocket")
#: Functions that a chat's client calls with each message.
CHAT_HANDLERS = frozenset({"on_message", "on_message_edit"})
INPUTS = frozenset({f"streamlit.{name}" for name in ("text_input", "text_area", "chat_input")})
READERS = _names("""
    PIL.Image.open aiofiles.open codecs.open configparser.ConfigParser().read dotenv.dotenv_values fs-extra.copy
    fs-extra.copySync fs-extra.readFile fs-extra.readFileSync fs.copyFile fs.copyFileSync fs.cpSync
    fs.createReadStream fs.openSync fs.promises.copyFile fs.promises.readFile fs.readFile fs.readFileSync
    fs/promises.readFile gzip.open io.open netrc.netrc numpy.fromfile open os.open shutil.copy shutil.copy2
    shutil.copyfile shutil.copytree shutil.make_archive sqlite3.connect
""")
READ_METHODS = _names("add addLocalFile file open readFile readFileSync read_bytes read_text write")
#: Functions that open a file to write to it.
OPENERS = _names("""
    aiofiles.open codecs.open fs.createWriteStream fs.openSync gzip.open io.open open tarfile.open zipfile.ZipFile
""")
LISTERS = _names("""
    fs.promises.readdir fs.readdir fs.readdirSync fs/promises.readdir glob glob.glob glob.globSync glob.iglob
    glob.sync os.fwalk os.listdir os.scandir os.walk
""")
LIST_METHODS = _names("glob iterdir rglob walk")
#: Writers of a whole file: (path, content).
WRITERS = _names("""
    fs-extra.appendFile fs-extra.appendFileSync fs-extra.outputFile fs-extra.outputFileSync fs-extra.writeFile
    fs-extra.writeFileSync fs.appendFile fs.appendFileSync fs.outputFile fs.outputFileSync
    fs.promises.appendFile fs.promises.appendFileSync fs.promises.outputFile fs.promises.outputFileSync
    fs.promises.writeFile fs.promises.writeFileSync fs.writeFile fs.writeFileSync fs/promises.appendFile
    fs/promises.appendFileSync fs/promises.outputFile fs/promises.outputFileSync fs/promises.writeFile
    fs/promises.writeFileSync
""")
JOINERS = _names("ntpath.join os.path.join path.join path.posix.join path.resolve posixpath.join")
#: Functions that return their first argument, as far as a path goes.
SAME = _names("""
    os.fsdecode os.fsencode os.fspath os.path.abspath os.path.expanduser os.path.expandvars os.path.normpath
    os.path.realpath path.normalize pathlib.Path pathlib.PosixPath pathlib.PurePath str
""")
USERS = _names("getpass.getuser os.getlogin os.getuid os.userInfo pwd.getpwuid")
HOSTS = _names("os.hostname os.uname platform.node platform.uname socket.getfqdn socket.gethostname uuid.getnode")
CAPTURES = _names("""
    PIL.ImageGrab.grab keyboard.read_event keyboard.read_key keyboard.record mss().shot mss.mss().grab
    mss.mss().shot pyaudio.PyAudio().open pyautogui.screenshot pyscreenshot.grab screenshot-desktop
    sounddevice.rec
""")
#: Functions that hand each key press, click or frame to a callback.
LISTENERS = re.compile(
    r"^(?:pynput\.(?:keyboard|mouse)\.Listener|keyboard\.(?:hook|on_press|on_release|add_hotkey)|pyHook\.HookManager"
    r"|pyxhook\.HookManager|iohook\.on|uiohook-napi\.uIOhook\.on|node-global-key-listener\.\w+\(\)\.addListener)$"
)
CLIPBOARDS = _names("""
    clipboardy.default.readSync clipboardy.read clipboardy.readSync pyperclip.paste
    win32clipboard.GetClipboardData xerox.paste
""")
COPIES = _names("""
    clipboardy.default.writeSync clipboardy.write clipboardy.writeSync pyperclip.copy
    win32clipboard.SetClipboardText xerox.copy
""")
DECODERS = _names("""
    atob base64.a85decode base64.b16decode base64.b32decode base64.b64decode base64.b85decode base64.decodebytes
    base64.standard_b64decode base64.urlsafe_b64decode binascii.a2b_base64 binascii.a2b_hex binascii.unhexlify
    bytearray.fromhex bytes.fromhex bz2.decompress codecs.decode gzip.decompress lzma.decompress marshal.loads
    zlib.brotliDecompressSync zlib.decompress zlib.gunzipSync zlib.inflateSync
""")
#: Names that are hidden for a purpose.
DANGEROUS = _names("""
    Function __import__ builtins.exec child_process compile ctypes eval exec execSync getattr(__builtins__)
    importlib marshal os os.execv os.popen os.system popen popen2 process.binding process.mainModule.require pty
    require subprocess system vm
""")
#: Functions whose result carries nothing of the argument.
CLEANERS = _names("""
    Boolean Number all any bool float fs.existsSync fs.statSync hash hashlib.md5 hashlib.sha1 hashlib.sha256 id
    int isinstance len logging.getLogger max min ord os.path.exists os.path.getsize os.path.isdir os.path.isfile
    os.stat paramiko.RSAKey.from_private_key_file parseInt print range shlex.quote sum type
""")
CLEANING_METHODS = _names("""
    count endsWith endswith exists includes index indexOf is_dir is_file isdigit lstat startsWith startswith
    stat status_code
""")
#: Methods that put their arguments into what they belong to.
MUTATORS = _names("""
    add add_attachment append appendleft attach concat extend file insert push put set set_content set_payload
    setdefault unshift update write writelines writestr
""")
ENVIRONMENTS = frozenset({"os.environ", "process.env", "os.environb"})
#: Programs that run a file, for use behind a word's begin.
INTERPRETERS = (
    r"(?:(?:ba|z|da|k)?sh|python[\d.]*|node|perl|ruby|php|powershell|pwsh|cmd|start|nohup|sudo|\.|"
    r"chmod\s+[^\sx7]*[x7]\S*)"
)
#: A command that downloads to a file; a copy of one with secrets to a command that sends.
DOWNLOADS = re.compile(
    r"\b(?:curl|wget|Invoke-WebRequest|iwr|certutil|bitsadmin)\b[^\n;|&]{0,1000}?\s"
    r"(?:-o|-O|--output|-OutFile|--output-document)[ =]?['\"]?([^\s'\";|&]+)"
)
SENDS = re.compile(r"\b(?:curl|wget|nc|ncat|netcat|scp|rsync|ftp|telnet)\b")
LOOKS_UP = re.compile(r"\b(?:nslookup|dig)\b")
PUBLISHES = re.compile(r"\b(?:npm|yarn|pnpm)\s+publish\b|\btwine\s+upload\b|\bcargo\s+publish\b")
SEARCHES_SECRETS = re.compile(
    r"\b(?:trufflehog|gitleaks|security\s+(?:dump-keychain|find-\w+-password)|gh\s+auth\s+token|secret-tool\s+lookup)\b"
)
#: A command that deletes everything of a home or of the folder that it runs in. Its own arguments are read, at most 40,
#: not those of a command behind it.
DESTROYS = re.compile(
    r"""(?ix)
    (?:^|[;&|(\n][^\S\n]*|\bsudo\s+|\s-c\s+) (?:
      rm(?:(?:[^\S\n]|\\\n)+-[^\s;&|]+){0,40}?(?:[^\S\n]|\\\n)+-[^\Wr]*r\w*(?:[^\S\n]|\\\n)+
      (?:(?:[^\s;&|\\]|\\.)+(?:[^\S\n]|\\\n)+){0,40}?(?:\./)?(?:\*|(?:~|\$\{?HOME\}?|/home|/root|/)(?:/?\*?))(?=$|[\s;&|)])
      | (?:rd|rmdir|del)(?:\s+/[a-z])+\s+(?:\.|\*|%USERPROFILE%\S*|[A-Z]:\\?\*?)(?=$|[\s;&|)])
      | find\s+["']?(?:\$\{?HOME\}?|~|/home|/root|/)/?["']?\s[^\n]{0,200}\b(?:shred|xargs[^\n]{0,40}\brm)\b
    )"""
)
GOES_TO_A_FOLDER = re.compile(r"(?:^|[;&|(\n][^\S\n]*)(?:cd|pushd)\s")
#: A command that unpacks an archive: the archive, and the folder if it names one.
UNPACKS = re.compile(
    r"\b(?:tar\s+[^\sx]*x\S*\s+(?:-\S+\s+)*|unzip\s+(?:-\S+\s+)*)['\"]?(?P<archive>[^\s'\";|&]+)['\"]?"
    r"(?:\s+(?:-C|-d|--directory)[ =]?['\"]?(?P<folder>[^\s'\";|&]+))?(?P<rest>[^\n]*)"
)
STARTS_BESIDE = re.compile(r"(?:^|[;&|]\s*)(?:\w+=[^\s;&|]+\s+)*(?:nohup\s+|sudo\s+|(?:ba|z)?sh\s+)*\./\S")
#: Functions that read what an address leads to, by their name.
READS_ADDRESS = re.compile(r"(?i)(?:^|[._])(?:read|load|open|fetch|download|get|from_?url|request)\w*$")
ADDRESS_OF_WEB = re.compile(r"^https?://")
CLOUD_KEYS = re.compile(r"^(?:boto3|botocore|aioboto3)\b[\w.()]*\.get_credentials$")
SCHEDULES = re.compile(r"\|\s*crontab\b|\bcrontab\s+-\s*(?:$|[\"'<])|\bcrontab\s+/\S")
#: Sockets whose ``on`` hands data to a callback.
SOCKETS = re.compile(
    r"^(?:net|tls)\.(?:connect|createConnection|Socket)\(\)(?:\.\w+\(\))*\.on$|^ws\(\)\.on$|^WebSocket\(\)\.on$"
)
WHOAMI = re.compile(r"(?:^|[\s;|&$(`])(?:whoami|id|hostname|uname(?:\s+-a)?)(?:$|[\s;|&)`])")
REMOVERS = _names("os.remove os.unlink shutil.rmtree fs.rmSync fs.unlinkSync fs.rm rimraf")
INTERPRETER_NAMES = _names("sh bash zsh dash python node perl ruby chmod sudo nohup powershell cmd wine")
#: Functions that import what a text names.
IMPORTS = _names(
    "__import__ importlib.import_module importlib.__import__ require process.mainModule.require createRequire()"
)
#: Methods of so many things that a class of the bundle with one says nothing.
COMMON_METHODS = _names(
    "get post read write close open send update add append items keys values __init__ constructor format join"
)
