import { describe, expect, test } from 'vitest';
import { formatBytes, formatDuration, formatMs, formatTable, progressBar } from '../../src/cli/format.ts';
import { createLog } from '../../src/cli/log.ts';
import { explain } from '../../src/cli/run.ts';
import { formatStatus } from '../../src/cli/status-report.ts';
import { Terminal, truncate } from '../../src/cli/terminal.ts';
import { RivuletError } from '../../src/errors.ts';
import type { ReplicatorStatus } from '../../src/replicator/status.ts';
import { fakeStream } from './fake-stream.ts';

describe('numbers for people', () => {
  test.each([
    [0, '0 B'],
    [1023, '1023 B'],
    [1536, '1.5 kB'],
    [50 * 2 ** 20, '50 MB'],
    [3 * 2 ** 40, '3.0 TB'],
  ])('%d bytes are %s', (bytes, text) => expect(formatBytes(bytes)).toBe(text));

  test.each([
    [0.0042, '4 µs'],
    [0.35, '0.35 ms'],
    [2.14, '2.1 ms'],
    [250, '250 ms'],
  ])('%d ms are %s', (ms, text) => expect(formatMs(ms)).toBe(text));

  test.each([
    [1500, '1.5 s'],
    [59_000, '59 s'],
    [59_900, '1m 0s'],
    [3_599_900, '1h 0m'],
    [90_000, '1m 30s'],
    [2 * 3_600_000, '2h 0m'],
    [50 * 3_600_000, '2d 2h'],
  ])('%d ms last %s', (ms, text) => expect(formatDuration(ms)).toBe(text));

  test('columns are as wide as what is seen of them', () => {
    expect(
      formatTable(
        [
          ['a', '\x1b[32mlong\x1b[39m', 'x'],
          ['bb', 's', 'y'],
        ],
        [1],
      ),
    ).toEqual(['a   \x1b[32mlong\x1b[39m  x', 'bb     s  y']);
  });

  test('a coloured line is cut by what is seen of it', () => {
    expect(truncate('\x1b[31mabcdef\x1b[39mghi', 4)).toBe('\x1b[31mabcd\x1b[39m');
    expect(truncate('short', 10)).toBe('short');
  });
});

describe('progress', () => {
  test('on a terminal one line is painted over, and lines that stay go above it', () => {
    const stream = fakeStream({ isTTY: true, columns: 20 });
    let now = 0;
    const terminal = new Terminal(stream, () => now);
    terminal.progress(() => 'one');
    terminal.progress(() => 'too soon');
    now += 1000;
    terminal.progress(() => 'two');
    terminal.line('a message');
    terminal.endProgress();
    expect(stream.text).toBe('one\r\x1b[2Ktwo\r\x1b[2Ka message\ntwo\r\x1b[2K');
  });

  test('elsewhere it goes to the log, seconds apart, and with its end', () => {
    const stream = fakeStream({});
    let now = 0;
    const terminal = new Terminal(stream, () => now);
    const log = createLog(terminal, { level: 'info', colour: false, stacks: false });
    terminal.logProgressTo((text) => log.info(text));
    for (; now < 11_000; now += 100)
      terminal.progress(() => `\x1b[32mcopying ${progressBar(now / 11_000)}\x1b[39m at ${now}`);
    terminal.endProgress();
    terminal.endProgress();
    const lines = stream.text
      .trimEnd()
      .split('\n')
      .map((line) => (JSON.parse(line) as { msg: string }).msg);
    expect(lines).toEqual([
      'copying 0% at 0',
      'copying 45% at 5000',
      'copying 90% at 10000',
      'copying 100% at 11000',
    ]);
  });
});

describe('logs', () => {
  const options = { level: 'info', colour: false, stacks: false } as const;

  test('are JSON lines without passwords where nobody looks', () => {
    const stream = fakeStream({});
    createLog(new Terminal(stream), options).info(
      { lsn: 5n, token: 'shh', url: 'postgres://u:pw@h/d' },
      'hello postgres://u:pw@h/d',
    );
    const record = JSON.parse(stream.text) as Record<string, unknown>;
    expect(record).toMatchObject({
      level: 30,
      msg: 'hello postgres://u:***@h/d',
      lsn: '5',
      token: '***',
      url: 'postgres://u:***@h/d',
    });
  });

  test('are lines for people on a terminal', () => {
    const stream = fakeStream({ isTTY: true });
    createLog(new Terminal(stream), options).warn(
      { slot: 'rivulet', err: new Error('it broke') },
      'trying again',
    );
    expect(stream.text).toMatch(/^\d\d:\d\d:\d\d\.\d{3} warn {2}trying again: it broke slot=rivulet\n$/);
  });
});

describe('errors', () => {
  const error = new RivuletError('SLOT_LOST', 'the slot of postgres://u:pw@h/d is gone', {
    hint: 'start again',
    cause: new Error('inner'),
  });

  test('are a message and a hint', () => {
    expect(explain(error, { verbose: false, colour: false })).toEqual([
      'rivulet: the slot of postgres://u:***@h/d is gone',
      '  hint: start again',
    ]);
  });

  test('have stacks only where they were asked for', () => {
    const text = explain(error, { verbose: true, colour: false }).join('\n');
    expect(text).toContain('output.test.ts');
    expect(text).toContain('caused by: Error: inner');
    expect(text).toContain('code: SLOT_LOST');
    expect(explain(new TypeError('a bug'), { verbose: false, colour: false })[1]).toContain('--verbose');
  });
});

describe('the status of a replicator', () => {
  const now = Date.parse('2026-11-21T03:00:00Z');
  const server = { version: '18.4', database: 'shop', walEnd: '0/20', lastError: null };
  const slot = { name: 'rivulet', active: true, retainedBytes: 0, safeWalBytes: null, lostInMs: null };
  const status: ReplicatorStatus = {
    state: 'streaming',
    reasons: [],
    upstream: null,
    epoch: 'e1',
    position: '0/10',
    durablePosition: '0/10',
    copy: null,
    postgres: { ...server, connected: true, asOf: '2026-11-21T02:59:57.000Z' },
    slot: { ...slot, walStatus: 'reserved' },
    tables: { mirrored: 2, notMirrored: [], reloading: [] },
    openTransactions: null,
    log: { bytes: 0, batches: 0, oldestPosition: '0/1', newestPosition: '0/10' },
    followers: [],
    buffers: { bufferedBytes: 0, totalBufferBytes: 0 },
    digest: null,
    snapshot: { position: null, bytes: null },
    store: null,
  };
  const page = (changed: Partial<ReplicatorStatus>): string =>
    formatStatus({ replicator: { ...status, ...changed } }, { colour: false, now });

  test('with the server there says what is so', () => {
    const text = page({});
    expect(text).toMatch(/lost +never: the server sets no limit/);
    expect(text).toMatch(/not mirrored +none/);
    expect(text).not.toContain('as of');
  });

  test('with a server that was never asked says that nothing is known', () => {
    const unknown = { version: null, database: null, walEnd: null, asOf: null, lastError: null };
    const text = page({
      postgres: { ...unknown, connected: false },
      slot: { ...slot, active: null, walStatus: null, retainedBytes: null },
    });
    expect(text).toMatch(/lost +unknown/);
    expect(text).toMatch(/not mirrored +unknown/);
    expect(text).not.toMatch(/never|none\n/);
  });

  test('with a server that has gone says as of when', () => {
    const asOf = '2026-11-21T02:58:00.000Z';
    for (const connected of [true, false])
      expect(page({ postgres: { ...server, connected, asOf } })).toMatch(/as of +2026-.* \(2m 0s ago\)/);
  });
});
