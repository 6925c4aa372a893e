import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

// For the threads that the tests start from the sources: what is compiled once is a fifth of all their work.
process.env.NODE_COMPILE_CACHE ??= fileURLToPath(new URL('node_modules/.cache/node', import.meta.url));

// Two projects: `unit` needs nothing, `integration` (*.pg.test.ts) starts real Postgres servers and real
// processes. The files run three at a time at most, whatever the machine: many wait, and each integration file brings a
// server of its own.
export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          sequence: { groupOrder: 0 },
          include: ['test/**/*.test.ts'],
          exclude: ['test/**/*.pg.test.ts'],
          testTimeout: 20_000,
          isolate: false,
          maxWorkers: 3,
        },
      },
      {
        test: {
          name: 'integration',
          sequence: { groupOrder: 1 },
          include: ['test/**/*.pg.test.ts'],
          exclude: ['test/scenarios/**'],
          globalSetup: ['test/helpers/global-setup.ts'],
          testTimeout: 120_000,
          hookTimeout: 120_000,
          maxWorkers: 3,
          pool: 'forks',
        },
      },
      // Every kind of type, table and schema change, three ways on each major, all at once.
      {
        test: {
          name: 'scenarios',
          sequence: { groupOrder: 2 },
          include: ['test/scenarios/**/*.pg.test.ts'],
          globalSetup: ['test/helpers/global-setup.ts'],
          testTimeout: 120_000,
          hookTimeout: 120_000,
          maxWorkers: 1,
          pool: 'forks',
        },
      },
    ],
  },
});
