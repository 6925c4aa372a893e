import type {
  LocalObjectsOptions,
  LocalReport,
  MissingLocalObject,
  NamedLocalObject,
} from './local-objects.ts';
import type { LocalScript } from './local-sql.ts';
import { foldName } from './naming.ts';

/** What is told of local objects: lines for the log, and what is missing for the status. */
export interface LocalEvents {
  onLog(level: 'info' | 'warn', message: string, facts: Readonly<Record<string, unknown>>): void;
  onLocal(missing: readonly MissingLocalObject[]): void;
  /** What takes long begins (nothing is applied until it is done), or is over: null. */
  onMaking(object: NamedLocalObject | null): void;
}

/** Says in words what becomes of the local objects of one file. */
export function localLog(
  events: LocalEvents,
  script: LocalScript | null,
): Pick<LocalObjectsOptions, 'onReport' | 'onStep'> {
  const lineOf = (name: string): string => {
    const line = script?.objects.find((object) => foldName(object.name) === foldName(name))?.line;
    return line === undefined ? '' : ` (${script!.source} line ${line})`;
  };
  return {
    onStep: ({ type, name }) => {
      events.onLog('info', `making the local ${type} ${name}`, {});
      events.onMaking({ type, name });
    },
    onReport: ({ made, removed, lost, rewritten, missing }: LocalReport) => {
      for (const { type, name, tookMs } of made)
        events.onLog('info', `the local ${type} ${name} was made`, { tookMs: Math.round(tookMs) });
      for (const { type, name } of removed)
        events.onLog('info', `the local ${type} ${name} was dropped: it is not declared any more`, {});
      for (const { type, name, reason } of lost) {
        events.onLog(
          'warn',
          `the local ${type} ${name}${lineOf(name)} is not there: ${reason}; it is tried again with the next schema change`,
          {},
        );
      }
      for (const { type, name, sql } of rewritten) {
        events.onLog(
          'warn',
          `the local ${type} ${name}${lineOf(name)} was changed with a name in Postgres: change its declaration too, a new file is made from that`,
          { sql },
        );
      }
      events.onMaking(null);
      events.onLocal(missing);
    },
  };
}
