import pino from 'pino';
import { withoutSecrets } from '../config.ts';
import { paint } from './format.ts';
import type { Terminal } from './terminal.ts';

const LABELS: Readonly<Record<number, readonly [string, 'gray' | 'cyan' | 'yellow' | 'red']>> = {
  20: ['debug', 'gray'],
  30: ['info ', 'cyan'],
  40: ['warn ', 'yellow'],
  50: ['error', 'red'],
  60: ['fatal', 'red'],
};

/** Fields that say nothing to somebody who looks at the terminal where the process runs. */
const HIDDEN = new Set(['level', 'time', 'msg', 'pid', 'hostname', 'err']);

export interface LogOptions {
  readonly level: 'debug' | 'info' | 'warn' | 'error';
  readonly colour: boolean;
  readonly stacks: boolean;
}

/** Logs for a person on a terminal, JSON lines elsewhere. No line leaves with the password of a URL in it. */
export function createLog(terminal: Terminal, options: LogOptions): pino.Logger {
  const write = terminal.isTty
    ? (line: string) => terminal.line(withoutSecrets(formatForPeople(line, options)))
    : (line: string) => terminal.line(withoutSecrets(line.trimEnd()));
  return pino(
    {
      level: options.level,
      base: null,
      redact: {
        paths: ['token', 'password', 'authorization', '*.token', '*.password', '*.authorization'],
        censor: '***',
      },
      serializers: {
        err: (error: unknown) => {
          const { stack, ...facts } = pino.stdSerializers.err(error as Error);
          return options.stacks ? { stack, ...facts } : facts;
        },
      },
      formatters: { log: (fields) => printable(fields) as Record<string, unknown> },
    },
    { write },
  );
}

/** LSNs and OIDs are bigints, which JSON does not know. */
function printable(fields: object): object {
  return Object.fromEntries(
    Object.entries(fields).map(([key, value]) => [key, typeof value === 'bigint' ? value.toString() : value]),
  );
}

function formatForPeople(line: string, options: LogOptions): string {
  const record = JSON.parse(line) as Record<string, unknown> & {
    level: number;
    time: number;
    msg?: string;
    err?: { message?: string; stack?: string };
  };
  const [label, colour] = LABELS[record.level] ?? ['     ', 'gray'];
  const facts = Object.entries(record)
    .filter(([key]) => !HIDDEN.has(key))
    .map(([key, value]) => `${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`);
  const time = new Date(record.time).toISOString().slice(11, 23);
  const parts = [paint(options.colour, 'gray', time), paint(options.colour, colour, label), record.msg ?? ''];
  if (record.err?.message !== undefined && record.err.message !== record.msg)
    parts.push(`: ${record.err.message}`);
  if (facts.length > 0) parts.push(paint(options.colour, 'gray', facts.join(' ')));
  const text = parts
    .filter((part) => part !== '')
    .join(' ')
    .replace(' : ', ': ');
  return options.stacks && record.err?.stack !== undefined ? `${text}\n${record.err.stack}` : text;
}
