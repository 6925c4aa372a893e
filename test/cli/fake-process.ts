import { EventEmitter } from 'node:events';
import type { ProcessLike } from '../../src/cli/run.ts';
import { type FakeStream, fakeStream } from './fake-stream.ts';

export interface FakeProcess extends ProcessLike {
  readonly stdout: FakeStream;
  readonly stderr: FakeStream;
  /** As if somebody pressed Ctrl-C. */
  signal(name: 'SIGINT' | 'SIGTERM'): void;
  readonly exits: number[];
  listenerCount(): number;
}

/** Enough of a process to run a command line in. */
export function fakeProcess(env: Record<string, string> = {}): FakeProcess {
  const signals = new EventEmitter();
  const exits: number[] = [];
  return {
    stdout: fakeStream({}),
    stderr: fakeStream({}),
    env,
    on: (event, listener) => signals.on(event, listener),
    off: (event, listener) => signals.off(event, listener),
    exit: (code) => exits.push(code),
    signal: (name) => void signals.emit(name),
    exits,
    listenerCount: () => signals.listenerCount('SIGINT') + signals.listenerCount('SIGTERM'),
  };
}
