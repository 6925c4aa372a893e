import { expect, test } from 'vitest';
import { FORMAT_VERSION, FRAME, jsonFrame, positionFrame } from '../../src/change/frame.ts';
import { RivuletError } from '../../src/errors.ts';
import type { Lsn } from '../../src/lsn.ts';
import { FollowerClient, reconnectDelayMs } from '../../src/replica/follower-client.ts';
import type {
  FollowerLink,
  FollowRequest,
  LinkStream,
  StreamHandlers,
} from '../../src/replica/follower-link.ts';
import { LagHistogram } from '../../src/replica/lag-histogram.ts';
import { WallClock } from '../../src/replica/wall-clock.ts';
import { batch, ITEMS, insertItem, START } from '../fanout/test-replicator.ts';
import { waitUntil } from '../helpers/wait-until.ts';

const HELLO = {
  version: FORMAT_VERSION,
  epoch: 'e1',
  position: '0/1000',
  reportIntervalMs: 1000,
  silenceLimitMs: 5000,
};
const hello = (change: Partial<typeof HELLO> = {}): Buffer => jsonFrame(FRAME.hello, { ...HELLO, ...change });
const at = (index: number): Lsn => START + BigInt(index) * 0x100n;
const transaction = (index: number): Buffer => batch(at(index), [insertItem(index)]).bytes;

/** A replicator as the test wants it: each open() is answered by the next script. */
class FakeLink implements FollowerLink {
  readonly requests: FollowRequest[] = [];
  hastened = 0;
  readonly #scripts: ((handlers: StreamHandlers) => void)[];

  constructor(...scripts: ((handlers: StreamHandlers) => void)[]) {
    this.#scripts = scripts;
  }

  async open(request: FollowRequest, handlers: StreamHandlers): Promise<LinkStream> {
    this.requests.push(request);
    const script = this.#scripts.shift() ?? ((): void => undefined);
    let isClosed = false;
    const guarded: StreamHandlers = {
      onBytes: (bytes) => {
        if (!isClosed) handlers.onBytes(bytes);
      },
      onEnd: (error) => {
        if (!isClosed) handlers.onEnd(error);
      },
    };
    setImmediate(() => script(guarded));
    return {
      consumed: () => undefined,
      close: () => {
        isClosed = true;
      },
    };
  }

  async report(): Promise<null> {
    return null;
  }

  async digest(): Promise<void> {}

  async hasten(): Promise<void> {
    this.hastened++;
  }

  close(): void {}
}

class FakeFile {
  epoch = 'e1';
  position = START;
  readonly applied: Buffer[] = [];
  abandoned = 0;
  fail: (() => Error) | null = null;

  apply(frames: Buffer): void {
    if (this.fail !== null) throw this.fail();
    this.applied.push(Buffer.from(frames));
    for (let offset = 0; offset < frames.length; offset += frames.readUInt32LE(offset)) {
      const type = frames[offset + 4];
      const lsn =
        type === FRAME.transaction
          ? frames.readBigUInt64LE(offset + 16)
          : type === FRAME.position
            ? frames.readBigUInt64LE(offset + 8)
            : 0n;
      if (lsn > this.position) this.position = lsn;
    }
  }

  abandonParts(): void {
    this.abandoned++;
  }
}

function client(link: FakeLink, file: FakeFile) {
  const stop = new AbortController();
  const reasons: string[] = [];
  const it = new FollowerClient({
    link,
    file,
    id: 'f',
    name: 'f',
    onConnected: () => undefined,
    onDisconnected: (reason) => reasons.push(reason.code),
    report: () => ({ name: 'f', position: file.position, lagMs: { p50: null, p99: null, last: null } }),
  });
  const running = it.run(stop.signal);
  running.catch(() => undefined);
  return {
    it,
    running,
    reasons,
    async [Symbol.asyncDispose]() {
      stop.abort();
      await running.catch(() => undefined);
    },
  };
}

test('applies the same frames wherever the bytes are cut', async () => {
  const stream = Buffer.concat([
    hello(),
    transaction(1),
    transaction(2),
    positionFrame(at(3), 0n),
    transaction(4),
  ]);
  for (let cut = 0; cut <= stream.length; cut++) {
    const file = new FakeFile();
    const link = new FakeLink(({ onBytes }) => {
      onBytes(stream.subarray(0, cut));
      setImmediate(() => onBytes(stream.subarray(cut)));
    });
    await using running = client(link, file);
    await waitUntil('all applied', () => file.position === at(4), { intervalMs: 1 });
    expect(Buffer.concat(file.applied)).toEqual(stream);
    expect(running.reasons).toEqual([]);
  }
});

test('what arrives in one turn is applied together; a single transaction at once', async () => {
  const file = new FakeFile();
  let handlers: StreamHandlers | null = null;
  const link = new FakeLink((given) => {
    handlers = given;
    given.onBytes(hello());
  });
  await using _running = client(link, file);
  await waitUntil('hello', () => file.applied.length === 1);
  for (let index = 1; index <= 50; index++) handlers!.onBytes(transaction(index));
  await new Promise((resolve) => setImmediate(resolve));
  expect(file.applied).toHaveLength(2);
  handlers!.onBytes(transaction(51));
  await new Promise((resolve) => setImmediate(resolve));
  expect(file.applied).toHaveLength(3);
});

test('a table that is read again beside a few others is no dense stream: what comes next does not wait', async () => {
  const file = new FakeFile();
  let handlers: StreamHandlers | null = null;
  const link = new FakeLink((given) => {
    handlers = given;
    given.onBytes(hello());
  });
  await using _running = client(link, file);
  await waitUntil('hello', () => file.applied.length === 1);
  const snapshot = { xmin: 900, xmax: 900, inProgress: [] };
  for (let index = 1; index <= 10; index++) {
    const row = { reloadRow: ITEMS.oid, row: [index, 'x'.repeat(20_000)] } as const;
    const changes = index === 1 ? [{ reloadBegin: ITEMS.oid, snapshot }, row] : [row];
    handlers!.onBytes(batch(at(2 * index), changes).bytes);
    handlers!.onBytes(transaction(2 * index + 1));
  }
  await new Promise((resolve) => setImmediate(resolve));
  expect(file.applied).toHaveLength(2);
  handlers!.onBytes(transaction(30));
  await new Promise((resolve) => setImmediate(resolve));
  expect(file.applied).toHaveLength(3);
});

test('positions without data are written now and then, and at once when somebody waits', async () => {
  const file = new FakeFile();
  let handlers: StreamHandlers | null = null;
  const link = new FakeLink((given) => {
    handlers = given;
    given.onBytes(hello());
  });
  await using running = client(link, file);
  await waitUntil('hello', () => file.applied.length === 1);
  for (let index = 1; index <= 20; index++) handlers!.onBytes(positionFrame(at(index), 0n));
  await new Promise((resolve) => setImmediate(resolve));
  expect(file.position).toBe(START);
  running.it.hasten();
  expect(file.position).toBe(at(20));
  expect(link.hastened).toBe(1);
  handlers!.onBytes(positionFrame(at(21), 0n));
  await waitUntil('the next one', () => file.position === at(21), { intervalMs: 1 });
});

test('resumes from its own position after a break, whatever was cut', async () => {
  const file = new FakeFile();
  const broken = new RivuletError('REPLICATOR_UNREACHABLE', 'cut');
  const link = new FakeLink(
    ({ onBytes, onEnd }) => {
      onBytes(Buffer.concat([hello(), transaction(1), transaction(2).subarray(0, 30)]));
      onEnd(broken);
    },
    ({ onBytes }) => onBytes(Buffer.concat([hello(), transaction(2)])),
  );
  await using running = client(link, file);
  await waitUntil('resumed', () => file.position === at(2));
  expect(link.requests.map(({ position }) => position)).toEqual([START, at(1)]);
  expect(running.reasons).toEqual(['REPLICATOR_UNREACHABLE']);
  expect(file.abandoned).toBeGreaterThan(0);
});

test.each([
  ['another version', hello({ version: 99 }), 'VERSION_MISMATCH'],
  ['another epoch', hello({ epoch: 'e2' }), 'EPOCH_MISMATCH'],
  [
    'an end that asks for a new start',
    Buffer.concat([hello(), jsonFrame(FRAME.end, { code: 'POSITION_TOO_OLD', message: 'pruned' })]),
    'POSITION_TOO_OLD',
  ],
])('%s is for the caller to solve', async (_name, bytes, code) => {
  await using running = client(new FakeLink(({ onBytes }) => onBytes(bytes)), new FakeFile());
  await expect(running.running).rejects.toMatchObject({ code });
});

test('a replicator that stops is awaited', async () => {
  const end = jsonFrame(FRAME.end, { code: 'CLOSED', message: 'stopping' });
  const link = new FakeLink(
    ({ onBytes }) => onBytes(Buffer.concat([hello(), end])),
    ({ onBytes }) => onBytes(Buffer.concat([hello(), transaction(1)])),
  );
  const file = new FakeFile();
  await using running = client(link, file);
  await waitUntil('back', () => file.position === at(1));
  expect(running.reasons).toEqual(['REPLICATOR_UNREACHABLE']);
});

test('silence is a broken connection', async () => {
  const file = new FakeFile();
  const link = new FakeLink(
    ({ onBytes }) => onBytes(hello({ silenceLimitMs: 50 })),
    ({ onBytes }) => onBytes(Buffer.concat([hello(), transaction(1)])),
  );
  await using _running = client(link, file);
  await waitUntil('connected again', () => file.position === at(1));
});

test('bytes that are no frames break the connection; at the same place again and again they condemn the file', async () => {
  const garbage = Buffer.concat([hello(), Buffer.from([1, 0, 0, 0, 0, 0, 0, 0])]);
  const scripts = Array.from(
    { length: 5 },
    () =>
      ({ onBytes }: StreamHandlers) =>
        onBytes(garbage),
  );
  await using running = client(new FakeLink(...scripts), new FakeFile());
  await expect(running.running).rejects.toMatchObject({ code: 'SNAPSHOT_CORRUPT' });
  expect(running.reasons).toEqual(['PROTOCOL', 'PROTOCOL', 'PROTOCOL', 'PROTOCOL']);
});

test('a full disk is waited for', async () => {
  const file = new FakeFile();
  file.fail = () => Object.assign(new Error('full'), { code: 'SQLITE_FULL' });
  const follow = ({ onBytes }: StreamHandlers): void => onBytes(Buffer.concat([hello(), transaction(1)]));
  await using running = client(new FakeLink(follow, follow, follow), file);
  await waitUntil('refused twice', () => running.reasons.length === 2);
  file.fail = null;
  await waitUntil('applied', () => file.position === at(1));
  expect(running.reasons).toEqual(['DISK_FULL', 'DISK_FULL']);
});

test('pauses grow to a bound and are scattered', () => {
  expect(reconnectDelayMs(0, () => 0)).toBe(50);
  expect(reconnectDelayMs(0, () => 1)).toBe(100);
  expect(reconnectDelayMs(100, () => 1)).toBe(5000);
  expect(reconnectDelayMs(100, () => 0)).toBe(2500);
});

test('lag quantiles over the last seconds', () => {
  const lag = new LagHistogram();
  expect(lag.summary(0)).toEqual({ p50: null, p99: null, last: null });
  for (let index = 1; index <= 1000; index++) lag.record(index / 10, 1000);
  const { p50, p99, last } = lag.summary(1000);
  expect(p50).toBeGreaterThan(45);
  expect(p50).toBeLessThan(55);
  expect(p99).toBeGreaterThan(90);
  expect(p99).toBeLessThan(110);
  expect(last).toBe(100);
  lag.record(-5, 7000);
  expect(lag.summary(7000).last).toBe(0);
  expect(lag.summary(60_000)).toEqual({ p50: null, p99: null, last: 0 });
});

test('the wall clock has fractions, never runs ahead by a millisecond, and follows when it is set', () => {
  let time = 1_000_000;
  let monotonic = 500.25;
  const clock = new WallClock(
    () => Math.floor(time),
    () => monotonic,
  );
  const pass = (ms: number): void => {
    time += ms;
    monotonic += ms;
  };
  for (let step = 0; step < 100; step++) {
    expect(Math.abs(clock.now() - time)).toBeLessThan(1);
    pass(0.37);
  }
  expect(Math.abs(clock.now() - time)).toBeLessThan(0.05);
  time -= 60_000;
  expect(Math.abs(clock.now() - time)).toBeLessThan(1);
  time += 90_000;
  expect(Math.abs(clock.now() - time)).toBeLessThan(1);
});
