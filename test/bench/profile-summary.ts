import { readdirSync, readFileSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { Profile } from './profile.ts';

interface CallFrame {
  readonly functionName: string;
  readonly url: string;
  readonly lineNumber: number;
}

/** As `node --cpu-prof` writes it. https://chromedevtools.github.io/devtools-protocol/tot/Profiler/#type-Profile */
interface CpuProfile {
  readonly nodes: readonly {
    readonly id: number;
    readonly callFrame: CallFrame;
  }[];
  readonly samples: readonly number[];
  readonly timeDeltas: readonly number[];
}

const SHOWN_FUNCTIONS = 20;
const IDLE = new Set(['(idle)', '(program)', '(root)']);

/** https://chromedevtools.github.io/devtools-protocol/tot/HeapProfiler/#type-SamplingHeapProfileNode */
interface AllocationNode {
  readonly callFrame: CallFrame;
  readonly selfSize: number;
  readonly children: readonly AllocationNode[];
}

/** For every profile (one per thread), the functions that took the most time, or allocated the most, of their own. */
export function summariseProfiles({ kind, directory }: Profile): string {
  const files = readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith(kind === 'cpu' ? '.cpuprofile' : '.heapprofile'))
    .sort((a, b) => statSync(join(directory, a)).mtimeMs - statSync(join(directory, b)).mtimeMs);
  const summarise = kind === 'cpu' ? summariseTime : summariseAllocations;
  return files
    .map((file) => `${file}\n${summarise(JSON.parse(readFileSync(join(directory, file), 'utf8')))}`)
    .join('\n\n');
}

function summariseTime({ nodes, samples, timeDeltas }: CpuProfile): string {
  const names = new Map(nodes.map(({ id, callFrame }) => [id, describeFrame(callFrame)]));
  const selfMs = new Map<string, number>();
  let totalMs = 0;
  let busyMs = 0;
  samples.forEach((id, index) => {
    const name = names.get(id) ?? '?';
    const ms = (timeDeltas[index] ?? 0) / 1000;
    totalMs += ms;
    if (!IDLE.has(name)) busyMs += ms;
    selfMs.set(name, (selfMs.get(name) ?? 0) + ms);
  });
  return [
    `  ${totalMs.toFixed(0)} ms, of them ${busyMs.toFixed(0)} in JavaScript, its builtins and addons`,
    ...top(selfMs, totalMs, (ms) => `${ms.toFixed(0)} ms`),
  ].join('\n');
}

function summariseAllocations({ head }: { readonly head: AllocationNode }): string {
  const selfBytes = new Map<string, number>();
  let totalBytes = 0;
  const rest = [head];
  for (let node = rest.pop(); node !== undefined; node = rest.pop()) {
    const name = describeFrame(node.callFrame);
    totalBytes += node.selfSize;
    selfBytes.set(name, (selfBytes.get(name) ?? 0) + node.selfSize);
    rest.push(...node.children);
  }
  const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  return [`  ${mib(totalBytes)} on the heap of JavaScript`, ...top(selfBytes, totalBytes, mib)].join('\n');
}

function top(
  shares: ReadonlyMap<string, number>,
  total: number,
  format: (value: number) => string,
): string[] {
  return [...shares]
    .sort(([, a], [, b]) => b - a)
    .slice(0, SHOWN_FUNCTIONS)
    .map(
      ([name, value]) =>
        `  ${format(value).padStart(10)}  ${((value / total) * 100).toFixed(1).padStart(5)} %  ${name}`,
    );
}

function describeFrame({ functionName, url, lineNumber }: CallFrame): string {
  if (url === '') return functionName;
  return `${functionName === '' ? '(anonymous)' : functionName} ${basename(url)}:${lineNumber + 1}`;
}
