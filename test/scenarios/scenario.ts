import { readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';

/**
 * `hooks`: schema changes are announced by event triggers. `fallback`: the server does not allow those. `listed`:
 * the publication is the scenario's own, instead of one of all tables; only scenarios that name it run there.
 */
export type Mode = 'hooks' | 'fallback' | 'listed';

/** What is done in one place of a scenario. Steps of one session run one behind the other. */
export type Step =
  | {
      readonly kind: 'statement';
      readonly session: string;
      readonly sql: string;
      /** SQLSTATE that Postgres answers, where the statement is meant to fail. */
      readonly fails: string | null;
    }
  /** Everything is compared here, too. */
  | { readonly kind: 'check'; readonly line: number };

export interface ExpectedDifference {
  readonly table: string;
  readonly reason: string;
}

/**
 * One file of test/scenarios/: statements before the initial copy, then live ones, as SQL with a few comments of
 * a fixed form, each on a line of its own:
 *
 *   -- setup, -- live              which part follows
 *   -- only: 18, fallback          the whole file is for these majors or this mode
 *   -- if: hooks … -- end if       these statements are
 *   -- session b                   the statements that follow go over another connection
 *   -- fails: 55000                the next statement is refused by Postgres, with this SQLSTATE
 *   -- check                       compare here, and not only at the end
 *   -- both ways: a, b             tables filled in set-up that are also filled by the stream: see Way in run.ts
 *   -- differs: [fallback,] t: …   table t may differ at the end, and why: what another change cures is not awaited
 *
 * A scenario has a schema of its own, named as the file is, first in the search_path; schemas whose names begin
 * with its name and `_` are its own too.
 */
export interface Scenario {
  readonly name: string;
  readonly setup: readonly Step[];
  readonly live: readonly Step[];
  readonly bothWays: readonly string[];
  readonly differs: readonly ExpectedDifference[];
}

/** The scenarios of test/scenarios/ that are for this major and mode; SCENARIO picks those that contain it. */
export function readScenarios(major: number, mode: Mode): Scenario[] {
  const dir = import.meta.dirname;
  const wanted = process.env.SCENARIO ?? '';
  return readdirSync(dir)
    .filter((file) => file.endsWith('.sql') && file.includes(wanted))
    .sort()
    .flatMap((file) => {
      const name = basename(file, '.sql').replaceAll('-', '_');
      const text = readFileSync(join(dir, file), 'utf8');
      const isForList = /^-- only: .*\blisted\b/m.test(text);
      if (isForList !== (mode === 'listed')) return [];
      return parseScenario(name, text, [String(major), mode]) ?? [];
    });
}

/** Null if the scenario is not for the run that `tags` (major, mode) describe. */
export function parseScenario(name: string, text: string, tags: readonly string[]): Scenario | null {
  const parts: Record<'setup' | 'live', Step[]> = { setup: [], live: [] };
  const bothWays: string[] = [];
  const differs: ExpectedDifference[] = [];
  const isFor = (list: string): boolean => list.split(',').every((tag) => tags.includes(tag.trim()));
  let part: 'setup' | 'live' = 'setup';
  let session = 'main';
  let fails: string | null = null;
  let isSkipped = false;
  let sql = '';
  for (const [index, line] of text.split('\n').entries()) {
    const [, word, rest = ''] =
      /^-- (setup|live|only|if|end if|session|fails|check|both ways|differs)\b:? ?(.*)$/.exec(line) ?? [];
    if (word !== undefined && sql !== '')
      throw new Error(`${name}:${index + 1}: a statement without its end`);
    if (word === 'only' && !isFor(rest)) return null;
    else if (word === 'setup' || word === 'live') part = word;
    else if (word === 'if') isSkipped = !isFor(rest);
    else if (word === 'end if') isSkipped = false;
    else if (word === 'session') session = rest;
    else if (word === 'fails') fails = rest;
    else if (word === 'both ways') bothWays.push(...rest.split(',').map((table) => table.trim()));
    else if (word === 'differs') {
      const [, condition = '', table, reason] = /^(?:(\w+), )?([^:]+): (.+)$/.exec(rest) ?? [];
      if (table === undefined || reason === undefined) throw new Error(`${name}:${index + 1}: ${line}`);
      if (condition === '' || isFor(condition)) differs.push({ table, reason });
    } else if (word === 'check') {
      if (!isSkipped) parts[part].push({ kind: 'check', line: index + 1 });
    } else if (word === undefined && (sql !== '' || (line.trim() !== '' && !line.startsWith('--')))) {
      sql += `${line}\n`;
      if (!isWhole(sql)) continue;
      if (!isSkipped) parts[part].push({ kind: 'statement', session, sql: sql.trim(), fails });
      sql = '';
      fails = null;
    }
  }
  if (sql !== '') throw new Error(`${name}: the last statement has no end`);
  return { name, ...parts, bothWays, differs };
}

/** Whether a statement ends here: a semicolon at the end of a line, outside of dollar quotes. */
function isWhole(sql: string): boolean {
  return /;\s*$/.test(sql) && (sql.match(/\$\w*\$/g) ?? []).length % 2 === 0;
}
