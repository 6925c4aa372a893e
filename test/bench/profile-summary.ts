import { readdirSync, readFileSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';

/** As `node --cpu-prof` writes it. https://chromedevtools.github.io/devtools-protocol/tot/Profiler/#type-Profile */
interface CpuProfile {
  readonly nodes: readonly {
    readonly id: number;
    readonly callFrame: { readonly functionName: string; readonly url: string; readonly lineNumber: number };
  }[];
  readonly samples: readonly number[];
  readonly timeDeltas: readonly number[];
}

const SHOWN_FUNCTIONS = 20;
const IDLE = new Set(['(idle)', '(program)', '(root)']);

/** For every profile below the directory (one per thread), the functions that took the most time of their own. */
export function summariseProfiles(directory: string): string {
  const files = readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.cpuprofile'))
    .sort((a, b) => statSync(join(directory, a)).mtimeMs - statSync(join(directory, b)).mtimeMs);
  return files
    .map(
      (file) =>
        `${file}\n${summariseProfile(JSON.parse(readFileSync(join(directory, file), 'utf8')) as CpuProfile)}`,
    )
    .join('\n\n');
}

function summariseProfile({ nodes, samples, timeDeltas }: CpuProfile): string {
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
  const top = [...selfMs].sort(([, a], [, b]) => b - a).slice(0, SHOWN_FUNCTIONS);
  return [
    `  ${totalMs.toFixed(0)} ms, of them ${busyMs.toFixed(0)} in JavaScript, its builtins and addons`,
    ...top.map(
      ([name, ms]) =>
        `  ${ms.toFixed(0).padStart(7)} ms  ${((ms / totalMs) * 100).toFixed(1).padStart(5)} %  ${name}`,
    ),
  ].join('\n');
}

function describeFrame({ functionName, url, lineNumber }: CpuProfile['nodes'][number]['callFrame']): string {
  if (url === '') return functionName;
  return `${functionName === '' ? '(anonymous)' : functionName} ${basename(url)}:${lineNumber + 1}`;
}
