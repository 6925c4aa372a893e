import { describe, expect, test } from 'vitest';
import { MAJORS } from '../helpers/postgres.ts';
import { checkPrograms } from './check.ts';

/** On an idle machine; the first program comes after some seconds for the servers to start. */
const LIMIT_MS = 15_000;

describe.each(MAJORS)('Postgres %i', (major) => {
  test('random schemas, rows, transactions and schema changes leave the replica equal', async () => {
    const seed = Number(process.env.SEED ?? Math.trunc(Math.random() * 2 ** 31));
    const { problems, programs } = await checkPrograms({ major, seed, limitMs: LIMIT_MS });
    expect(problems).toEqual([]);
    expect(programs).toBeGreaterThan(1);
  }, 400_000);
});
