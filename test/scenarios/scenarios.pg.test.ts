import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { MAJORS, startPostgres, type TestPostgres } from '../helpers/postgres.ts';
import { ScenarioDatabase } from './run.ts';
import { type Mode, readScenarios } from './scenario.ts';

const MODES = ['hooks', 'fallback', 'listed'] as const satisfies Mode[];

describe.each(MAJORS)('Postgres %i', (major) => {
  let server: TestPostgres;
  const outcomes = new Map<Mode, Map<string, string[]>>();

  beforeAll(async () => {
    server = await startPostgres({
      major,
      settings: {
        max_prepared_transactions: 10,
        // On one of them nearly everything is streamed before its commit.
        ...(major === MAJORS.at(-1) ? { logical_decoding_work_mem: '64kB' } : {}),
      },
    });
    // All at once: one server has time for them.
    await Promise.all(
      MODES.map(async (mode) => {
        await using database = await ScenarioDatabase.create(server, mode);
        outcomes.set(mode, await database.run(readScenarios(major, mode)));
      }),
    );
  }, 240_000);
  afterAll(async () => {
    await server.close();
  });

  describe.each(MODES)('%s', (mode) => {
    test.each(readScenarios(major, mode).map(({ name }) => name))('%s', (name) => {
      expect(outcomes.get(mode)!.get(name)).toEqual([]);
    });

    test('no scenario needed a new copy', () => {
      expect(outcomes.get(mode)!.get('')).toEqual([]);
    });
  });
});
