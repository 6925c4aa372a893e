import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { POSTGRES_MAJORS, type PostgresMajor } from './bench-case.ts';
import type { Profile } from './profile.ts';

export interface BenchOptions {
  readonly runs: number;
  /** Names of the cases; all of them if empty. */
  readonly cases: readonly string[];
  readonly isShort: boolean;
  readonly output: 'text' | 'json' | 'markdown';
  readonly postgresMajor: PostgresMajor;
  readonly peerScripts: readonly string[];
  readonly profile: Profile | undefined;
}

export const USAGE = `npm run bench -- [options]
  --case NAME            only this case; may be given several times
  --runs N               repetitions (default 3; 1 with --short)
  --short                small sizes: shows that all works, its times mean nothing
  --postgres-major 15|18 the server (default 18)
  --peer-script PATH     run this program through the same cases, see test/bench/peer.ts; may be given several times
  --json | --markdown    what to print instead of a plain table
  --profile DIR          CPU profiles of our processes, and the functions that took the most time of their own
  --allocations DIR      the same of what they allocate on the heap of JavaScript`;

/** Throws an Error that says what is wrong with the arguments. */
export function parseOptions(args: readonly string[], caseNames: readonly string[]): BenchOptions {
  const { values } = parseArgs({
    args: [...args],
    options: {
      case: { type: 'string', multiple: true, default: [] },
      runs: { type: 'string' },
      short: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
      markdown: { type: 'boolean', default: false },
      'peer-script': { type: 'string', multiple: true, default: [] },
      'postgres-major': { type: 'string', default: '18' },
      profile: { type: 'string' },
      allocations: { type: 'string' },
    },
  });
  const postgresMajor = POSTGRES_MAJORS.find((major) => String(major) === values['postgres-major']);
  if (postgresMajor === undefined)
    throw new Error(`--postgres-major is one of ${POSTGRES_MAJORS.join(', ')}`);
  for (const name of values.case) {
    if (!caseNames.includes(name))
      throw new Error(`there is no case '${name}'; there are ${caseNames.join(', ')}`);
  }
  const runs = Number(values.runs ?? (values.short ? 1 : 3));
  if (!Number.isInteger(runs) || runs < 1) throw new Error('--runs is a whole number above 0');
  if (values.json && values.markdown) throw new Error('--json and --markdown exclude each other');
  if (values.profile !== undefined && values.allocations !== undefined)
    throw new Error('--profile and --allocations exclude each other: each would be seen in the other');
  return {
    runs,
    cases: values.case,
    isShort: values.short,
    output: values.json ? 'json' : values.markdown ? 'markdown' : 'text',
    postgresMajor,
    peerScripts: values['peer-script'].map((path) => {
      if (!existsSync(path)) throw new Error(`--peer-script: there is no ${path}`);
      return resolve(path);
    }),
    profile: profileOf(values),
  };
}

function profileOf(values: { profile?: string; allocations?: string }): Profile | undefined {
  if (values.profile !== undefined) return { kind: 'cpu', directory: resolve(values.profile) };
  if (values.allocations !== undefined)
    return { kind: 'allocations', directory: resolve(values.allocations) };
  return undefined;
}
