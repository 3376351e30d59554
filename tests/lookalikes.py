"""Benign code that looks like malware: each does for a good reason what a shape of ``incident_shapes`` does for a bad one."""

# ruff: noqa: E501 -- such code is written in one line, and is read that way here

from __future__ import annotations

from tests.gate import Files

_FLASK = "from flask import Flask, request, jsonify\napp = Flask(__name__)\n"
_EXPRESS = "const express = require('express');\nconst app = express();\n"

PYTHON = {
    "a key from the environment in a header": "import os, requests\nr = requests.get('https://api.example.com/v1', headers={'Authorization': 'Bearer ' + os.environ['API_KEY']})\nprint(r.json())",
    "some settings sent to a tracker": "import os, requests\nrequests.post('https://track.example.com/runs', json={'region': os.environ.get('REGION'), 'version': os.getenv('VERSION', '1')})",
    "the environment for a child": "import os, subprocess\nsubprocess.run(['ls'], env={**os.environ, 'LANG': 'C'})",
    "settings from the environment": "import os\nCONFIG = {k[4:]: v for k, v in os.environ.items() if k.startswith('APP_')}\nprint(sorted(CONFIG))",
    "its own address": "import socket\nprint(socket.gethostbyname(socket.gethostname()))",
    "its own address by getaddrinfo": "import socket\nhost = socket.getfqdn()\nprint(socket.getaddrinfo(host, 80))",
    "a lookup of a name from a form": _FLASK
    + "import socket\n@app.get('/')\ndef look():\n    return socket.gethostbyname(request.args['name'])\n",
    "a lookup of a subdomain": "import dns.resolver\nfor name in ('www', 'mail'):\n    print(dns.resolver.resolve(f'{name}.example.com', 'A'))",
    "a name of the service in DNS": "import os, socket\nprint(socket.gethostbyname(os.environ['SERVICE'] + '.default.svc.cluster.local'))",
    "metrics with the host's name": "import socket, requests, psutil\nrequests.post('https://metrics.example.com', json={'host': socket.gethostname(), 'cpu': psutil.cpu_percent()})",
    "statsd with the host": "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.sendto(f'up.{socket.gethostname()}:1|c'.encode(), ('127.0.0.1', 8125))",
    "an SSH client with a key": "import os, paramiko\nc = paramiko.SSHClient()\nc.connect('host.example.com', username='deploy', key_filename=os.path.expanduser('~/.ssh/id_rsa'))\nc.exec_command('uptime')",
    "scp with a key": "import subprocess\nsubprocess.run(['scp', '-i', '/root/.ssh/id_rsa', 'out.csv', 'deploy@host.example.com:/srv/'])",
    "known hosts read": "import os\nprint(open(os.path.expanduser('~/.ssh/known_hosts')).read().count('\\n'))",
    "a profile of AWS used": "import boto3\ns = boto3.Session(profile_name='prod')\ns.client('s3').upload_file('report.pdf', 'bucket', 'report.pdf')",
    "an upload of its own file": "import requests\nwith open('reports/today.pdf', 'rb') as f:\n    requests.post('https://upload.example.com', files={'file': f})",
    "a backup of a folder to S3": "import boto3, os\ns3 = boto3.client('s3')\nfor root, _, names in os.walk('data'):\n    for n in names:\n        s3.upload_file(os.path.join(root, n), 'backups', n)",
    "a zip of a folder by mail": "import shutil, smtplib\nfrom email.message import EmailMessage\nshutil.make_archive('out', 'zip', 'reports')\nm = EmailMessage()\nm.add_attachment(open('out.zip', 'rb').read(), maintype='application', subtype='zip')\nsmtplib.SMTP('mail.example.com').send_message(m)",
    "a bot that answers with files": "import telebot\nbot = telebot.TeleBot('token')\n@bot.message_handler(commands=['doc'])\ndef doc(message):\n    with open('manual.pdf', 'rb') as f:\n        bot.send_document(message.chat.id, f)\nbot.infinity_polling()",
    "a webhook for errors": "import logging, requests, traceback\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    requests.post('https://discord.com/api/webhooks/1/x', json={'content': traceback.format_exc()})",
    "a video that is fetched and converted": "import subprocess, urllib.request\nurllib.request.urlretrieve('https://example.com/v.mp4', 'v.mp4')\nsubprocess.run(['ffmpeg', '-i', 'v.mp4', 'v.webm'])",
    "an archive that is fetched and unpacked": "import requests, tarfile\nopen('d.tgz', 'wb').write(requests.get('https://example.com/d.tgz').content)\ntarfile.open('d.tgz').extractall('data', filter='data')",
    "a list that is fetched and sorted": "import os, requests\nopen('/tmp/list.txt', 'w').write(requests.get('https://example.com/list').text)\nos.system('sort /tmp/list.txt > /tmp/sorted.txt')",
    "git after a fetch": "import requests, subprocess\nv = requests.get('https://api.example.com/version').json()['v']\nsubprocess.run(['git', 'checkout', v])",
    "a font that is fetched": "import pathlib, httpx\np = pathlib.Path('fonts/a.ttf')\np.write_bytes(httpx.get('https://example.com/a.ttf').content)\nprint(p.stat().st_size)",
    "a dataset by pandas": "import pandas as pd\nprint(pd.read_csv('https://example.com/d.csv').describe())",
    "JSON of a download": "import json, requests\nprint(json.loads(requests.get('https://example.com/x').text)['a'])",
    "YAML of a download, safely": "import requests, yaml\nprint(yaml.safe_load(requests.get('https://example.com/c.yml').text))",
    "a model of its own": "import pickle\nwith open('model.pkl', 'rb') as f:\n    model = pickle.load(f)\nprint(model)",
    "a cache in pickles": "import pickle, redis\nr = redis.Redis()\nr.set('k', pickle.dumps({'a': 1}))\nprint(pickle.loads(r.get('k')))",
    "a model of joblib from a hub": "import joblib\nfrom huggingface_hub import hf_hub_download\nmodel = joblib.load(hf_hub_download('me/model', 'm.joblib'))",
    "a handler by its name": "class App:\n    def on_start(self):\n        return 1\n\nname = 'start'\nprint(getattr(App(), 'on_' + name)())",
    "a hash by its name": "import hashlib\nprint(getattr(hashlib, 'sha' + '256')(b'x').hexdigest())",
    "a plugin by its name": "import importlib\nfor name in ('csv', 'json'):\n    importlib.import_module('plugins.' + name)",
    "drivers in a table": "import importlib\nDRIVERS = {'pg': 'psycopg', 'lite': 'sqlite3'}\ndb = importlib.import_module(DRIVERS['lite'])\nprint(db)",
    "a version read by exec": "import pathlib\nns = {}\nexec(pathlib.Path('version.py').read_text(), ns)\nprint(ns)",
    "a picture in base64": "import base64\nhtml = '<img src=\"data:image/png;base64,' + base64.b64encode(open('logo.png', 'rb').read()).decode() + '\">'\nprint(html)",
    "a token in base64": "import base64, json\ntoken = 'e30.e30.x'\nprint(json.loads(base64.urlsafe_b64decode(token.split('.')[1] + '==')))",
    "a payload of a queue, decoded": _FLASK
    + "import base64\n@app.post('/push')\ndef push():\n    data = base64.b64decode(request.json['message']['data'])\n    return jsonify(n=len(data))\n",
    "a calculator on the syntax tree": "import ast\nprint(ast.literal_eval('{\"a\": 1}'))",
    "files encrypted in a folder of its own": "import pathlib\nfrom cryptography.fernet import Fernet\nf = Fernet(Fernet.generate_key())\nfor p in pathlib.Path('backups').glob('*.tar'):\n    p.with_suffix('.enc').write_bytes(f.encrypt(p.read_bytes()))",
    "a field encrypted before it is sent": "import os, requests\nfrom cryptography.fernet import Fernet\nf = Fernet(os.environ['FIELD_KEY'])\nrequests.post('https://api.example.com', data=f.encrypt(b'card'))",
    "old files removed": "import os, time\nfor n in os.listdir('/tmp/cache'):\n    p = os.path.join('/tmp/cache', n)\n    if os.path.getmtime(p) < time.time() - 3600:\n        os.remove(p)",
    "its own folder removed": "import shutil\nshutil.rmtree('build', ignore_errors=True)",
    "a clipboard of its own text": "import pyperclip\npyperclip.copy('https://example.com/share/1')",
    "an address shown": "ADDRESS = '0x' + 'ab' * 20\nprint('donate to', ADDRESS)",
    "an address checked": "import re\ndef ok(text):\n    return re.match('^0x[a-fA-F0-9]{40}$', text) is not None\nprint(ok('0x' + '0' * 40))",
    "a hotkey that does something": "import keyboard\nkeyboard.add_hotkey('ctrl+q', lambda: print('bye'))",
    "a file of settings in the home": "import os, json\npath = os.path.expanduser('~/.config/myapp/config.json')\nos.makedirs(os.path.dirname(path), exist_ok=True)\njson.dump({'a': 1}, open(path, 'w'))",
    "a proxy for an API": _FLASK
    + "import requests\n@app.get('/p')\ndef p():\n    r = requests.get('https://api.example.com/x', params=request.args)\n    return r.text\n",
    "a health check by a command": "import subprocess, requests\nout = subprocess.check_output(['uptime']).decode()\nrequests.post('https://status.example.com', data=out)",
    "users of a system listed": "import pwd\nprint([p.pw_name for p in pwd.getpwall()])",
    "a worker that gets tasks by HTTP": "import requests, subprocess\nwhile True:\n    task = requests.get('https://queue.example.com/next').json()\n    subprocess.run(['python3', 'worker.py', '--task', str(task['id'])])",
    "a user's name greeted": "import getpass\nprint('hello', getpass.getuser())",
    "a request signed with keys of AWS": "import boto3, requests\nfrom requests_aws4auth import AWS4Auth\nk = boto3.Session().get_credentials()\nsigned = AWS4Auth(k.access_key, k.secret_key, 'eu-west-1', 'es', session_token=k.token)\nprint(requests.get('https://search.example.com/_cat', auth=signed).text)",
    "a key of an API in a header": "import requests\ndef pay(url, secret_key, private_key):\n    headers = {'X-Api-Key': private_key}\n    headers['Authorization'] = private_key\n    requests.post(url, headers=headers, json={'amount': 1})\n    return requests.post(url, headers={'Authorization': f'Bearer {secret_key}'})",
    "a visitor checked by reCAPTCHA": "import requests\nfrom django.conf import settings\ndef is_person(token):\n    return requests.post('https://www.google.com/recaptcha/api/siteverify', data={'secret': settings.secret_key, 'response': token}).json()['success']",
    "a token signed with a private key": "import jwt, requests\ndef token(private_key):\n    return jwt.encode({'sub': 'a'}, private_key, algorithm='RS256')\nrequests.get('https://api.example.com', headers={'Authorization': 'Bearer ' + token(open('keys/app.pem').read())})",
    "a transaction signed and sent": "import requests\nfrom eth_account import Account\ndef pay(private_key, tx):\n    signed = Account.sign_transaction(tx, private_key)\n    return requests.post('https://rpc.example.com', json={'params': [signed.raw_transaction.hex()]})",
    "a bot that answers in a chat": "import discord\nclient = discord.Client(intents=discord.Intents.default())\n@client.event\nasync def on_message(message):\n    if message.content.startswith('!ping'):\n        await message.channel.send('pong ' + message.content[5:])\nclient.run('x')",
    "a bot that runs a fixed command": "import discord, subprocess\nclient = discord.Client(intents=discord.Intents.default())\n@client.event\nasync def on_message(message):\n    if message.content == '!uptime':\n        await message.channel.send(subprocess.getoutput('uptime'))\nclient.run('x')",
    "a picture decoded and converted": "import base64, subprocess\nfrom flask import Flask, request\napp = Flask(__name__)\n@app.post('/')\ndef convert():\n    with open('/tmp/in.png', 'wb') as f:\n        f.write(base64.b64decode(request.json['image']))\n    subprocess.run(['convert', '/tmp/in.png', '/tmp/out.jpg'])\n    return 'ok'",
    "a build folder emptied": "import os, subprocess\nsubprocess.run('rm -rf *', shell=True, cwd='build')\nos.system('cd dist && rm -rf *')\nos.system('rm -rf build/* *.pyc')\nos.system('rm -rf out && tar czf out.tgz *')\nos.system('rm -rf dist; du -sh ~')\nos.system('rm -rf tmp && df -h /')\nos.system('''rm -rf tmp\ndu -sh /''')\nos.system('rm -rf ./node_modules')",
    "an archive that is fetched and unpacked by tar": "import os\nos.system('curl -L -o data.tgz https://example.com/data.tgz')\nos.system('tar xzf data.tgz -C data && ls data')",
    "a function with a path as its default": "import json, os\ndef read(path='~/.config/app.json'):\n    return json.load(open(os.path.expanduser(path)))\ndef known(path='~/.ssh/known_hosts'):\n    return len(open(os.path.expanduser(path)).read())\nprint(read(), known())",
    "a picture that is fetched and read": "import cv2, skimage.io\nimage = skimage.io.imread('https://example.com/a.png')\ncode, *_ = cv2.QRCodeDetector().detectAndDecode(image)\nprint(code)",
    "the folder of the process": "import os, shutil\nshutil.rmtree(os.path.join(os.getcwd(), 'out'), ignore_errors=True)\nos.system('ls ' + os.getcwd())",
}

NODE = {
    "a key from the environment in a header": "fetch('https://api.example.com', { headers: { Authorization: `Bearer ${process.env.API_KEY}` } }).then((r) => r.json()).then(console.log);",
    "a file that is served": _EXPRESS
    + "const fs = require('fs');\napp.get('/', (req, res) => res.send(fs.readFileSync('index.html', 'utf8')));\napp.listen(process.env.PORT);",
    "a child with the environment": "const { spawn } = require('child_process');\nspawn('node', ['worker.js'], { env: { ...process.env, WORKER: '1' } });",
    "a file that is fetched and kept": "const fs = require('fs'), https = require('https');\nhttps.get('https://example.com/a.csv', (r) => r.pipe(fs.createWriteStream('a.csv')));",
    "a video that is fetched and converted": "const fs = require('fs'), { execFile } = require('child_process');\n(async () => { const r = await fetch('https://example.com/v.mp4'); fs.writeFileSync('v.mp4', Buffer.from(await r.arrayBuffer())); execFile('ffmpeg', ['-i', 'v.mp4', 'v.webm']); })();",
    "routes by their file": "const fs = require('fs'), path = require('path');\nfor (const f of fs.readdirSync(path.join(__dirname, 'routes'))) require('./routes/' + f);",
    "a token decoded": "const token = 'e30.e30.x';\nconst payload = JSON.parse(Buffer.from(token.split('.')[1], 'base64').toString());\nconsole.log(payload);",
    "metrics with the host's name": "const os = require('os');\nfetch('https://metrics.example.com', { method: 'POST', body: JSON.stringify({ host: os.hostname(), load: os.loadavg() }) });",
    "a lookup of a host": "const dns = require('dns');\ndns.lookup(process.env.DB_HOST, (e, a) => console.log(a));",
    "addresses hidden in a page": "const hide = (text) => text.replace(/0x[a-fA-F0-9]{40}/g, '0x…');\nconsole.log(hide('0x' + '0'.repeat(40)));",
    "a thumbnail for each picture": "const fs = require('fs'), path = require('path'), sharp = require('sharp');\nfor (const f of fs.readdirSync('pictures')) sharp(path.join('pictures', f)).resize(100).toFile(path.join('thumbs', f));",
    "a template compiled": "const Handlebars = require('handlebars'), fs = require('fs');\nconst page = Handlebars.compile(fs.readFileSync('page.hbs', 'utf8'));\nconsole.log(page({ a: 1 }));",
    "a timer": "setTimeout(() => fetch('https://example.com/ping'), 1000);\nsetInterval(function () { console.log('tick'); }, 1000);",
    "an upload to a store": "const { S3Client, PutObjectCommand } = require('@aws-sdk/client-s3');\nconst fs = require('fs');\nnew S3Client({}).send(new PutObjectCommand({ Bucket: 'b', Key: 'k', Body: fs.readFileSync('report.pdf') }));",
    "a key of the connection": "const https = require('https'), fs = require('fs');\nconst privateKey = fs.readFileSync('keys/client.pem');\nfunction ask(privateKey) { https.request({ hostname: 'api.example.com', key: privateKey, cert: fs.readFileSync('keys/client.crt') }, (r) => r.pipe(process.stdout)).end(); }\nask(privateKey);",
    "a key of an API in a header": "const axios = require('axios');\nexports.pay = (secretKey, amount) => axios.post('https://api.example.com/charges', { amount }, { headers: { Authorization: `Bearer ${secretKey}` } });\nexports.check = (config, response) => fetch('https://www.google.com/recaptcha/api/siteverify', { method: 'POST', body: new URLSearchParams({ secret: config.secretKey, response }) });",
    "a pattern on an address": "const query = /q=([^&]+)/;\nmodule.exports = (name) => query.exec(encodeURI('https://example.com/?q=' + name));",
    "a transaction signed with a phrase": "const { ethers } = require('ethers');\nasync function pay(mnemonic, to) {\n  const wallet = ethers.Wallet.fromPhrase(mnemonic).connect(ethers.getDefaultProvider());\n  const tx = await wallet.sendTransaction({ to, value: 1n });\n  await fetch('https://api.example.com/paid', { method: 'POST', body: JSON.stringify({ hash: tx.hash }) });\n}\npay(process.env.PHRASE, process.argv[2]);",
    "a token of an app for an API": "const jwt = require('jsonwebtoken'), axios = require('axios');\nfunction tokenOf(privateKey) { return jwt.sign({ iss: 1 }, privateKey, { algorithm: 'RS256' }); }\naxios.get('https://api.github.com/app', { headers: { Authorization: 'Bearer ' + tokenOf(process.env.KEY) } });",
    "a build folder emptied": "const { execSync, spawnSync } = require('child_process');\nexecSync('rm -rf *', { cwd: 'dist' });\nexecSync('rm -rf dist/* coverage');\nexecSync('rm -rf tmp && df -h /');\nspawnSync('rm', ['-rf', 'build']);",
    "an archive that is fetched and unpacked": "const { execSync } = require('child_process');\nexecSync('curl -sL -o data.tar.gz https://example.com/data.tar.gz');\nexecSync('tar -xzf data.tar.gz -C data');\nconsole.log(require('fs').readdirSync('data'));",
    "a picture that is fetched and made small": "const Jimp = require('jimp');\n(async () => { const image = await Jimp.read('https://example.com/a.jpg'); image.resize(100, 100).write('small.jpg'); })();",
    "an agent in a sandbox": "const { spawn } = require('child_process');\nconst agent = spawn('claude', ['-p', 'Summarize README.md', '--output-format', 'json']);\nagent.stdout.pipe(process.stdout);",
}

LOOKALIKES: dict[str, tuple[Files, str]] = {
    **{
        f"python: {name}": (
            {"app.py": f"{text}\n", "version.py": "V = 1\n", "worker.py": "print(1)\n"},
            "python3 app.py",
        )
        for name, text in PYTHON.items()
    },
    **{f"node: {name}": ({"app.js": f"{text}\n", "worker.js": "1\n"}, "node app.js") for name, text in NODE.items()},
}
