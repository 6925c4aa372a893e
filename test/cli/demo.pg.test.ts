import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, chownSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { expectNothingLeft } from '../helpers/nothing-left.ts';
import { COMPILE_CACHE } from '../helpers/processes.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const NOBODY = 65534;

let dir = '';
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'rivulet-demo-test-'));
  // The server runs as an unprivileged user, and its directory lies below.
  chmodSync(dir, 0o755);
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

function startDemo(args: readonly string[], identity: { uid?: number; gid?: number } = {}) {
  const child = spawn(process.execPath, [MAIN, 'demo', ...args], {
    ...identity,
    env: { PATH: process.env.PATH ?? '', NODE_COMPILE_CACHE: COMPILE_CACHE, TMPDIR: dir, HOME: dir },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const output = { text: '' };
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output.text += text;
    });
  }
  return { child, output, exit: once(child, 'close').then(() => child.exitCode) };
}

/** Killing and restarting a replica, on a demo that runs to its end, is looked at with the package: test/package. */
describe('rivulet demo', () => {
  test.runIf(process.getuid?.() === 0)(
    'runs as an ordinary user, and compares when it is interrupted',
    async () => {
      chownSync(dir, NOBODY, NOBODY);
      const { child, output, exit } = startDemo(['--seconds', '600'], { uid: NOBODY, gid: NOBODY });
      await waitUntil('the live part', () => output.text.includes('lag p50/p99') || child.exitCode !== null, {
        timeoutMs: 60_000,
      });
      child.kill('SIGINT');
      expect(await exit, output.text).toBe(0);
      expect(output.text).toContain('All three replicas equal Postgres');
      await expectNothingLeft(dir);
    },
  );

  test('interrupted while it sets itself up, leaves nothing behind', async () => {
    const { child, output, exit } = startDemo([]);
    await waitUntil('the server', () => output.text.includes('Postgres  '), { timeoutMs: 60_000 });
    child.kill('SIGINT');
    expect(await exit).toBe(1);
    expect(output.text).toContain('interrupted before anything could be compared');
    await expectNothingLeft(dir);
  });

  test('the second signal ends it at once, and still leaves nothing behind', async () => {
    const { child, output, exit } = startDemo(['--seconds', '600']);
    await waitUntil('the live part', () => output.text.includes('lag p50/p99') || child.exitCode !== null, {
      timeoutMs: 60_000,
    });
    child.kill('SIGINT');
    await waitUntil(
      'the comparison',
      () => output.text.includes('writes stopped') || child.exitCode !== null,
    );
    child.kill('SIGINT');
    expect(await exit).toBe(1);
    expect(output.text).not.toContain('All three');
    await expectNothingLeft(dir);
  });
});
