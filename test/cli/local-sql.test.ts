import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { run } from '../../src/cli/run.ts';
import { temporaryDirectory } from '../fanout/test-replicator.ts';
import { fakeProcess } from './fake-process.ts';

test.each([
  [
    'CREATE VIEW v AS SELECT 1;\nCREATE INDX i ON t (x);',
    'local.sql line 2: CREATE INDX is not allowed here',
    'allowed are: CREATE INDEX, VIEW',
  ],
  ['\nCREATE VIEW v AS\nSELECT 1 1;', 'local.sql line 2: near "1": syntax error', 'mend that line'],
  [
    'CREATE UNIQUE INDEX i ON t (x)',
    'local.sql line 1: the index i cannot be unique',
    'Postgres has checked uniqueness',
  ],
  [null, 'local.sql cannot be read: ENOENT', 'check the path'],
])('a wrong --local-sql ends with exit code 2 before anything is opened: %s', async (text, message, hint) => {
  using dir = temporaryDirectory();
  const localSql = join(dir.path, 'local.sql');
  if (text !== null) writeFileSync(localSql, text);
  const before = readdirSync(dir.path);
  for (const from of [
    ['--replicator', 'http://127.0.0.1:1'],
    ['--postgres', 'postgres://nobody@127.0.0.1:1/x'],
  ]) {
    const host = fakeProcess({ RIVULET_LOCAL_SQL: localSql });
    expect(await run(['replica', '--file', join(dir.path, 'app.db'), ...from], host)).toBe(2);
    const lines = host.stderr.text.trimEnd().split('\n');
    expect(lines).toHaveLength(2);
    expect(lines[0]).toContain(`rivulet: `);
    expect(lines[0]).toContain(message);
    expect(lines[1]).toContain(`hint: ${hint}`);
    expect(readdirSync(dir.path)).toEqual(before);
  }
});
