import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { MAJORS } from '../helpers/postgres.ts';
import { checkPrograms } from './check.ts';
import { LiveSystem } from './live-system.ts';
import { readProgram } from './program.ts';

/** On an idle machine; the first program comes after some seconds for the servers to start. */
const LIMIT_MS = 10_000;

/** Programs that once left a difference. What each showed has its scenario, too. */
const FOUND = join(import.meta.dirname, 'found');

test('the programs of earlier differences leave the replica equal', async () => {
  await using system = new LiveSystem(18);
  for (const name of readdirSync(FOUND)) {
    const program = readProgram(readFileSync(join(FOUND, name), 'utf8'));
    expect(await system.run(program), name).toEqual([]);
  }
}, 400_000);

describe.each(MAJORS)('Postgres %i', (major) => {
  test('random schemas, rows, transactions and schema changes leave the replica equal', async () => {
    const seed = Number(process.env.SEED ?? Math.trunc(Math.random() * 2 ** 31));
    const { problems, programs } = await checkPrograms({ major, seed, limitMs: LIMIT_MS });
    expect(problems).toEqual([]);
    expect(programs).toBeGreaterThan(1);
  }, 400_000);
});
