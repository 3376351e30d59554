const vm = require('vm'), fs = require('fs');
const names = ['exports', 'require', 'module', '__filename', '__dirname'];
const attempt = (make) => { try { make(); return null; } catch (error) { return error; } };
const fault = (number, path) => {
  const source = fs.readFileSync(folder + '/' + number, 'utf8').replace(/^#!.*/, '');
  const script = () => vm.compileFunction(source, names, { filename: 'file' });
  const module = () => new vm.SourceTextModule(source, { identifier: 'file' });
  const kinds = path.endsWith('.mjs') ? [module] : path.endsWith('.cjs') ? [script] : [script, module];
  const errors = kinds.map(attempt);
  if (errors.includes(null)) return null;
  const error = /\b(import|export|await)\b/.test(String(errors[0].message)) ? errors.at(-1) : errors[0];
  const line = /^file:(\d+)/m.exec(String(error.stack));
  return [path, line ? Number(line[1]) : 0, String(error.message).slice(0, 300), error instanceof SyntaxError];
};
const dropped = new Set(['type', 'start', 'end', 'loc', 'kind', 'raw', 'sourceType', 'async', 'generator', 'optional',
  'method', 'shorthand', 'directive', 'static', 'await', 'label']);
const short = (node, depth = 0) => {
  if (depth > 1000) throw new Error('nested too deep to be followed');
  if (Array.isArray(node)) return node.map((one) => short(one, depth + 1));
  if (node === null || typeof node !== 'object') return node;
  if (node.type === 'TemplateElement') return node.value.cooked;
  if (node.type === 'Literal') return node.regex ? { t: 'Literal', regex: node.regex.pattern }
    : { t: 'Literal', value: typeof node.value === 'bigint' ? null : node.value };
  const made = { t: node.type, l: node.loc.start.line };
  for (const key in node) if (!dropped.has(key)) made[key] = short(node[key], depth + 1);
  return made;
};
let acorn = null;
try { acorn = require('internal/deps/acorn/acorn/dist/acorn'); } catch { }
const tree = (number) => {
  const source = fs.readFileSync(folder + '/' + number, 'utf8');
  for (const sourceType of ['module', 'script'])
    try {
      const parsed = acorn.parse(source, { ecmaVersion: 'latest', sourceType, locations: true, allowHashBang: true,
        allowReturnOutsideFunction: true, allowAwaitOutsideFunction: true, allowSuperOutsideMethod: true });
      return short(parsed);
    } catch (error) { if (!(error instanceof SyntaxError)) return null; }
  return null;
};
const { files, followed, folder } = JSON.parse(fs.readFileSync(0, 'utf8'));
const problems = files.map(([path, number]) => fault(number, path));
const broken = new Set(files.filter((_, at) => problems[at]).map(([_, number]) => number));
const trees = acorn ? followed.filter((one) => !broken.has(one)).map((number) => [number, tree(number)]) : null;
const answer = Buffer.from(JSON.stringify({ problems: problems.filter(Boolean), trees }));
for (let at = 0; at < answer.length;) at += fs.writeSync(1, answer, at);
// Nothing is left to be tidied up.
process.reallyExit(0);
