import { Agent, request } from 'node:http';
import { connect, type Socket } from 'node:net';
import { FRAME } from '../../../src/change/frame.ts';
import { formatLsn, type Lsn } from '../../../src/lsn.ts';
import type { CrowdCommand, CrowdReport } from './crowd.ts';

/**
 * Many followers in one process: each speaks the real protocol over a socket of its own, walks through the frames,
 * and reports once in a while. Nothing is applied. That the sequence of transactions is whole is checked against
 * that of all others: who comes to a place first says what stands there.
 */
const READ_BYTES = 256 * 1024;
const HISTOGRAM_STEP_MS = 0.25;
const HISTOGRAM_STEPS = 40_000;
const REPORT_CONNECTIONS = 20;

const { url, epoch, start } = JSON.parse(process.argv[2]!) as {
  readonly url: string;
  readonly epoch: string;
  /** Where all of them begin, LSN. */
  readonly start: string;
};
const { hostname, port } = new URL(url);

/** Commit positions in the order of the stream, from `start` on. */
const sequence: number[] = [];
const problems: string[] = [];
const histogram = new Uint32Array(HISTOGRAM_STEPS);
let deliveries = 0;
let bytes = 0;
let reads = 0;
/** One buffer for all: what is read is looked at before the next read. */
const shared = Buffer.allocUnsafeSlow(READ_BYTES);
const agent = new Agent({ keepAlive: true, maxSockets: REPORT_CONNECTIONS });

function u64(buffer: Buffer, at: number): number {
  return buffer.readUInt32LE(at) + buffer.readUInt32LE(at + 4) * 0x1_0000_0000;
}

function now(): number {
  return performance.timeOrigin + performance.now();
}

class CrowdFollower {
  readonly id: string;
  readonly #socket: Socket;
  readonly joined: Promise<void>;
  #setJoined: () => void = () => undefined;
  #hasHead = false;
  #rest: Buffer | null = null;
  /** Place in `sequence` of the next transaction. */
  #next = 0;
  #isLive = false;
  #lagMs = 0;
  #reportMs = 1000;
  position = 0;
  isStalled = false;
  wasStalled = false;
  isGone = false;
  #reporter: NodeJS.Timeout | undefined;

  constructor(id: string) {
    this.id = id;
    this.joined = new Promise((resolve) => {
      this.#setJoined = resolve;
    });
    this.#socket = connect({
      host: hostname,
      port: Number(port),
      noDelay: true,
      onread: {
        buffer: shared,
        callback: (count) => {
          reads++;
          bytes += count;
          this.#take(shared.subarray(0, count));
          return true;
        },
      },
    });
    this.#socket.on('error', () => undefined);
    this.#socket.on('close', () => {
      this.isGone = true;
      clearTimeout(this.#reporter);
    });
    const query = new URLSearchParams({ epoch, lsn: start, follower: id, digests: '1' });
    this.#socket.write(`GET /v1/stream?${query} HTTP/1.1\r\nhost: ${hostname}\r\n\r\n`);
  }

  get transactions(): number {
    return this.#next;
  }

  stall(): void {
    this.isStalled = true;
    this.wasStalled = true;
    clearTimeout(this.#reporter);
    this.#socket.pause();
  }

  resume(): void {
    this.isStalled = false;
    this.#socket.resume();
  }

  #take(chunk: Buffer): void {
    let buffer = this.#rest === null ? chunk : Buffer.concat([this.#rest, chunk]);
    this.#rest = null;
    if (!this.#hasHead) {
      const end = buffer.indexOf('\r\n\r\n');
      if (end < 0) {
        this.#rest = Buffer.from(buffer);
        return;
      }
      const head = buffer.toString('latin1', 0, end);
      if (!head.startsWith('HTTP/1.1 200')) problem(`${this.id} was answered ${head.split('\r\n')[0]}`);
      this.#hasHead = true;
      buffer = buffer.subarray(end + 4);
    }
    const atMs = now();
    let at = 0;
    while (buffer.length - at >= 8) {
      const length = buffer.readUInt32LE(at);
      if (buffer.length - at < length) break;
      this.#frame(buffer, at, length, atMs);
      at += length;
    }
    // The shared buffer is about to be written over.
    if (at < buffer.length) this.#rest = Buffer.from(buffer.subarray(at));
  }

  #frame(buffer: Buffer, at: number, length: number, atMs: number): void {
    switch (buffer[at + 4]) {
      case FRAME.transaction: {
        const commit = u64(buffer, at + 8);
        if (this.#next === sequence.length) sequence.push(commit);
        else if (sequence[this.#next] !== commit)
          problem(
            `${this.id}: transaction ${this.#next} is ${lsn(commit)}, others have ${lsn(sequence[this.#next]!)}`,
          );
        this.#next++;
        this.position = u64(buffer, at + 16);
        this.#lagMs = atMs - u64(buffer, at + 24) / 1000;
        if (this.#isLive && !this.wasStalled) {
          deliveries++;
          const step = Math.max(0, Math.floor(this.#lagMs / HISTOGRAM_STEP_MS));
          histogram[Math.min(HISTOGRAM_STEPS - 1, step)]!++;
        }
        break;
      }
      case FRAME.position:
        // The first one says that it has caught up.
        this.#isLive = true;
        this.position = Math.max(this.position, u64(buffer, at + 8));
        break;
      case FRAME.hello: {
        const hello = JSON.parse(buffer.toString('utf8', at + 8, at + length)) as {
          reportIntervalMs: number;
        };
        this.#reportMs = hello.reportIntervalMs;
        this.#reporter = setTimeout(() => this.#report(), this.#reportMs * Math.random());
        this.#setJoined();
        break;
      }
      case FRAME.end:
        if (!this.wasStalled)
          problem(`${this.id} was ended: ${buffer.toString('utf8', at + 8, at + length)}`);
        break;
    }
  }

  #report(): void {
    const body = JSON.stringify({
      name: this.id,
      lsn: lsn(this.position),
      lagMs: { p50: this.#lagMs, p99: this.#lagMs, last: this.#lagMs },
    });
    const headers = { 'content-type': 'application/json', 'content-length': body.length };
    const post = request({
      host: hostname,
      port,
      agent,
      method: 'POST',
      path: `/v1/followers/${this.id}`,
      headers,
    });
    post.on('response', (response) => {
      response.resume();
      const interval = Number(response.headers['rivulet-report-interval']);
      if (interval > 0) this.#reportMs = interval;
    });
    post.on('error', () => undefined);
    post.end(body);
    this.#reporter = setTimeout(() => this.#report(), this.#reportMs);
  }

  close(): void {
    clearTimeout(this.#reporter);
    this.#socket.destroy();
  }
}

const followers: CrowdFollower[] = [];

function problem(text: string): void {
  if (problems.length < 20) problems.push(text);
}

function lsn(position: number): string {
  return formatLsn(BigInt(position) as Lsn);
}

function quantile(share: number): number {
  let rank = Math.ceil(deliveries * share);
  for (let step = 0; step < HISTOGRAM_STEPS; step++) {
    rank -= histogram[step]!;
    if (rank <= 0) return (step + 1) * HISTOGRAM_STEP_MS;
  }
  return Number.NaN;
}

/** Waits until everybody who reads is where the stream ends. */
async function finish(end: number, timeoutMs: number): Promise<CrowdReport> {
  const deadlineMs = performance.now() + timeoutMs;
  const reading = (): CrowdFollower[] =>
    followers.filter((each) => !each.isStalled && !(each.wasStalled && each.isGone));
  const isThere = ({ position }: CrowdFollower): boolean => position >= end;
  while (!reading().every(isThere) && performance.now() < deadlineMs)
    await new Promise((resolve) => setTimeout(resolve, 20));
  // What commits behind the end may have come to some already.
  const expected = sequence.filter((commit) => commit < end).length;
  for (const each of reading()) {
    if (!isThere(each)) problem(`${each.id} ended at ${lsn(each.position)}, before ${lsn(end)}`);
    if (each.transactions < expected)
      problem(`${each.id} has ${each.transactions} of ${expected} transactions`);
  }
  return {
    followers: followers.length,
    whole: reading().filter((each) => each.transactions >= expected).length,
    transactions: expected,
    deliveries,
    bytes,
    reads,
    lagMs: { p50: quantile(0.5), p99: quantile(0.99), max: quantile(1) },
    problems,
    cpuSeconds: cpuSeconds(),
  };
}

function cpuSeconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

async function obey(command: CrowdCommand): Promise<unknown> {
  switch (command.kind) {
    case 'join': {
      const joining: CrowdFollower[] = [];
      for (let index = 0; index < command.count; index++) {
        joining.push(new CrowdFollower(`${command.group}-${index}`));
        // A listen queue is not endless.
        if (index % 50 === 49) await joining.at(-1)!.joined;
      }
      followers.push(...joining);
      await Promise.all(joining.map(({ joined }) => joined));
      return null;
    }
    case 'stall':
      for (const each of followers.slice(0, command.count)) each.stall();
      return null;
    case 'resume':
      for (const each of followers.filter(({ isStalled }) => isStalled).slice(0, command.count))
        each.resume();
      return null;
    case 'measure':
      histogram.fill(0);
      deliveries = 0;
      bytes = 0;
      reads = 0;
      return null;
    case 'finish':
      return finish(Number(command.end), command.timeoutMs);
  }
}

process.on('message', ({ number, command }: { number: number; command: CrowdCommand }) => {
  obey(command).then(
    (answer) => process.send!({ number, answer }),
    (error: unknown) => process.send!({ number, error: String(error) }),
  );
});
process.on('disconnect', () => process.exit());
